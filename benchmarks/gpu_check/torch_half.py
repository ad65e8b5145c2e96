"""The paper's network, rewritten as it is exported, on the GPU: half against float64."""

import copy
from typing import Any

import torch

from benchmarks.gpu_check.rung import NothingToRunOnError
from poan_export.precision.islands import default_islands, in_half
from poan_export.rewrite.network import rewrite, rules_for
from poan_export.rewrite.root import Scheme
from poan_export.trace.stages import pools_of
from poan_train import networks

TILE, BATCH = 60, 2


def run() -> dict[str, Any]:
    """Largest differences at z and output, with TF32 on and off in what stays float32."""
    if not torch.cuda.is_available():
        raise NothingToRunOnError(f"torch {torch.__version__} finds no GPU")
    torch.manual_seed(0)
    network = networks.build("poan", networks.make_config("poan", 2)).eval().cuda()
    tiles = torch.rand(BATCH, 1, TILE, TILE, device="cuda")
    exact = answers(copy.deepcopy(network).double(), tiles.double())
    exported = rewrite(network, rules_for(Scheme(name="quintic", iterations=7), "box"))
    half = in_half(exported, "fp16", default_islands(exported, "fp16")).cuda()
    figures: dict[str, Any] = {}
    for tf32 in (False, True):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        for name, module in (("float32", exported), ("half", half)):
            found = answers(module.cuda(), tiles)
            figures[f"{name}, tf32 {'on' if tf32 else 'off'}"] = {
                stage: worst(found[stage], exact[stage]) for stage in exact if stage in found
            }
    off = [values for name, values in figures.items() if name.endswith("off")]
    return {"figures": figures, "failed": [v for v in off if v["output"] is None]}


@torch.no_grad()
def answers(network: torch.nn.Module, tiles: torch.Tensor) -> dict[str, torch.Tensor]:
    """The output, and z of each covariance pooling by the name of its module."""
    kept: dict[str, torch.Tensor] = {}
    hooks = [
        pool.register_forward_hook(lambda _m, _i, out, name=name: kept.update({name: out}))
        for name, (_, pool) in pools_of(network).items()
    ]
    kept["output"] = network(tiles)
    for hook in hooks:
        hook.remove()
    return kept


def worst(found: torch.Tensor, exact: torch.Tensor) -> float | None:
    """max|y - ref| / max|ref|; None where it is not finite."""
    value = float((found.double() - exact).abs().max() / exact.abs().max())
    return value if value == value else None
