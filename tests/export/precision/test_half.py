"""Half precision: islands, emulated arithmetic, and the search for the smallest set of islands."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from torch import nn

from poan_export.cli import main
from poan_export.gate.parity import Gate, run_onnx
from poan_export.precision import half_graph
from poan_export.precision.find_islands import Found, find_islands, minimise
from poan_export.precision.half_emulation import run_half
from poan_export.precision.islands import default_islands, fixed_islands, in_half, widened
from poan_export.rewrite.network import rewrite, rules_for
from poan_export.rewrite.root import Scheme
from poan_export.trace.onnx_export import export_twin
from poan_export.trace.stages import OUTPUT
from poan_runtime.errors import PoanError
from tests.tiny.networks import TILE, tiny_network

RULES = rules_for(Scheme(name="quintic", iterations=8), "box")


def overflowing() -> nn.Module:
    """The same function in float32; the inside of the first block is 2^11 times larger."""
    network = tiny_network()
    first, _, second = network.get_submodule("body.0.body")  # type: ignore[misc]
    with torch.no_grad():
        for tensor in (first.weight, first.bias):
            tensor.mul_(2.0**11)
        second.weight.mul_(2.0**-11)
    return network


@pytest.fixture(scope="module")
def half_twin(network: nn.Module) -> onnx.ModelProto:
    exported = rewrite(network, RULES)
    return export_twin(in_half(exported, "fp16", default_islands(exported, "fp16")), TILE)


def test_the_emulation_agrees_with_true_half_arithmetic(
    network: nn.Module, gate: Gate, half_twin: onnx.ModelProto
) -> None:
    exported = rewrite(network, RULES)
    batch = gate.cases.batch[:1]
    run = run_half(
        in_half(exported, "fp16", default_islands(exported, "fp16")), batch, torch.float16
    )
    names = [output.name for output in half_twin.graph.output]
    with np.errstate(all="ignore"):
        true = dict(zip(names, ReferenceEvaluator(half_twin).run(None, {"lr": batch}), strict=True))
    for stage, y in run.stages.items():
        exact = true["sr" if stage == OUTPUT else stage]
        # Both round every result to 2^-11 and differ in how they sum: a few roundings.
        assert np.abs(y - exact).max() <= 8 * 2.0**-11 * np.abs(exact).max(), stage


def test_the_file_holds_half_precision_weights_outside_of_the_islands(
    half_twin: onnx.ModelProto,
) -> None:
    sizes = {
        kind: sum(
            int(np.prod(t.dims))
            for t in half_twin.graph.initializer
            if t.data_type == kind and len(t.dims) == 4
        )
        for kind in (TensorProto.FLOAT, TensorProto.FLOAT16)
    }
    assert sizes[TensorProto.FLOAT16] > 2000  # all convolutions
    assert sizes[TensorProto.FLOAT] == 0
    assert {p.type.tensor_type.elem_type for p in half_twin.graph.output} == {TensorProto.FLOAT}
    assert half_twin.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT


def test_the_widened_file_computes_in_float32_with_rounded_weights(
    gate: Gate, half_twin: onnx.ModelProto
) -> None:
    wide = widened(half_twin)
    kinds = {t.data_type for t in wide.graph.initializer}
    assert TensorProto.FLOAT16 not in kinds
    y = run_onnx(wide, gate.cases.batch[:2])[OUTPUT]
    reference = gate.reference[OUTPUT][:2]
    error = np.abs(y - reference).max()
    assert 1e-6 < error < 2e-3  # weights rounded to 2^-11, and nothing else


def test_an_island_that_is_no_module_is_refused(network: nn.Module) -> None:
    with pytest.raises(PoanError, match=r"island 'body\.7': this network has no module"):
        in_half(rewrite(network, RULES), "fp16", ["body.7"])


def test_overflow_is_seen_and_its_module_named(gate: Gate) -> None:
    exported = rewrite(overflowing(), RULES)
    half = in_half(exported, "fp16", default_islands(exported, "fp16"))
    run = run_half(half, gate.cases.batch, torch.float16)
    assert run.tightest == ("body.0.body.0", 0.0)
    failed = [c for c in run.checks("m") if not c.passed]
    assert failed[0].stage == "body.0.body.0"
    calm = run_half(half, gate.cases.batch[:1], torch.float16)
    # 65504 over what float32 computes there, read apart.
    seen: list[float] = []
    exported.get_submodule("body.0.body.0").register_forward_hook(
        lambda m, i, o: seen.append(float(o.abs().max()))
    )
    with torch.no_grad():
        exported(torch.from_numpy(gate.cases.batch[:1]))
    assert calm.headroom["body.0.body.0"] == pytest.approx(65504 / seen[0], rel=0.01)


@pytest.fixture(scope="module")
def found(gate: Gate) -> Found:
    """The islands that the overflowing network needs."""
    return find_islands(rewrite(overflowing(), RULES), gate, "fp16")


@pytest.mark.slow
def test_the_smallest_set_of_islands_is_found_and_mends_the_overflow(
    gate: Gate, found: Found
) -> None:
    exported = rewrite(overflowing(), RULES)
    chosen = [island for island in found.islands if "body.0" in island]
    assert chosen == ["body.0.body"]
    islands = [*fixed_islands(exported), *found.islands]

    def passes(islands: list[str]) -> bool:
        run = run_half(in_half(exported, "fp16", islands), gate.cases.batch, torch.float16)
        return all(c.passed for c in gate.check_reduced("m", run.stages, "fp16"))

    assert passes(islands)
    for island in found.islands:  # with any one of them in half precision the gate fails
        assert not passes([i for i in islands if i != island]), island


@pytest.mark.slow
def test_the_command_refuses_the_overflow_and_find_islands_mends_it(
    checkpoint: Callable[[nn.Module], Path],
    found: Found,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The command's search is asked once, and answers what the same search found above."""
    monkeypatch.setattr(half_graph, "find_islands", lambda network, gate, half: found)
    path = checkpoint(overflowing())
    arguments = ["--ckpt", str(path), "--tile", str(TILE), "--fp16", "--engine", "none"]
    assert main(arguments) == 3
    error = capsys.readouterr().err
    assert "the backbone drifted: body.0.body.0, case 'all': largest_value not finite" in error
    assert "--find-islands" in error
    assert not path.with_suffix("").exists()
    assert main([*arguments, "--find-islands"]) == 0
    assert '"body.0.body"' in capsys.readouterr().err
    assert (path.with_suffix("") / "model.fp16.onnx").is_file()


def test_minimise_keeps_every_needed_island_and_no_other() -> None:
    need = {"a.1.x", "c"}
    tree = {"a": ["a.0", "a.1"], "a.1": ["a.1.x", "a.1.y"]}

    def passes(islands: object) -> bool:
        return all(any(n == i or n.startswith(f"{i}.") for i in islands) for n in need)  # type: ignore[attr-defined]

    found = minimise(["a", "b", "c"], [], passes, lambda name: tree.get(name, []))
    assert found == ["a.1.x", "c"]
    assert minimise(["a", "b"], ["a", "c"], passes, lambda name: []) == []


def test_in_half_does_not_change_the_network_that_it_converts(network: nn.Module) -> None:
    exported = rewrite(network, RULES)
    before = copy.deepcopy(exported.state_dict())
    in_half(exported, "bf16", fixed_islands(exported))
    assert all(torch.equal(v, before[k]) for k, v in exported.state_dict().items())
