"""Real tensorrt-rtx plans of the paper's network, x2, x3 and x4, fp16, built with no GPU.

Untrained weights and the least tile: kernels, casts and islands are those of any tile, and the
export of forty blocks is what takes the time.
"""

from pathlib import Path

import onnx
import pytest
import torch

from poan_export.precision.islands import default_islands, in_half
from poan_export.rewrite.network import rewrite, rules_for
from poan_export.rewrite.root import Scheme
from poan_export.trace.onnx_export import export_twin, without_stages
from poan_runtime.engines.tensorrt.build.plan import Order, build_plan, targets
from poan_runtime.engines.tensorrt.library import load_library
from poan_runtime.models.manifest import BatchRange
from poan_train import networks

pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
TILE = 12
CONVOLUTIONS = {2: 2, 3: 2, 4: 3}
"""Of the tail; there are 82 more in head and body, and the 1x1 ones of the attention."""


@pytest.mark.slow
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_plan_of_the_papers_network_is_built_for_every_target(scale: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = networks.build("poan", networks.make_config("poan", scale)).eval()
    scheme = Scheme(name="quintic", iterations=7)
    exported = rewrite(network, rules_for(scheme, "box"))
    islands = default_islands(exported, "fp16")
    half = in_half(exported, "fp16", islands)
    onnx.save(without_stages(export_twin(half, TILE)), tmp_path / "model.fp16.onnx")
    (sms,) = targets("fp16")
    built = build_plan(
        Order(
            onnx=tmp_path / "model.fp16.onnx",
            plan=tmp_path / "engine.plan",
            flavour="tensorrt-rtx",
            precision="fp16",
            islands=islands,
            batch=BatchRange(min=1, opt=8, max=32),
            sms=sms,
        )
    )
    assert built.compute_capabilities == ("8.0", "8.6", "8.9", "12.0", "12.1")
    report = built.report
    assert report["layer_kinds"]["correlation"] >= 82 + CONVOLUTIONS[scale]
    assert len(report["fused_attention"]) == 1  # the point attention, and all its nodes
    # Its two products and its softmax. The builder sees the pattern in the patch attention too,
    # whose products are 288 wide: its kernel ends at 256.
    assert sum(report["attention"].values()) == 3
    parameters = sum(parameter.numel() for parameter in network.parameters())
    # two bytes per weight; the builder keeps a little more for the islands
    assert report["weights_bytes"] == pytest.approx(2 * parameters, rel=0.05)
    library = load_library("tensorrt-rtx")
    runtime = library.api.Runtime(library.logger)
    _, bits = runtime.get_engine_validity(built.order.plan.read_bytes()[:64])
    assert bits & int(library.api.EngineInvalidityDiagnostics.MALFORMED_ENGINE) == 0
