"""The gate: passes what is right, and names the stage that is not."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from poan_export.gate.parity import (
    RELATIVE_ERROR_FLOOR,
    Check,
    Gate,
    ParityFailure,
    judge,
    norm_error,
    run_torch,
    unit_error,
)
from poan_export.rewrite.network import rewrite, rules_for
from poan_export.rewrite.root import Scheme
from poan_export.trace.stages import OUTPUT
from poan_runtime.engines.verify import relative_error
from tests.tiny.networks import TILE, facts_of

GOOD = Scheme(name="quintic", iterations=8)


def rewritten(network: nn.Module, scheme: Scheme = GOOD) -> nn.Module:
    return rewrite(network, rules_for(scheme, "box"))


def checks_of(gate: Gate, exported: nn.Module) -> list[Check]:
    return gate.check_float32("model.onnx", run_torch(exported, gate.cases.batch, torch.float32))


def test_a_correct_export_passes_the_gate_at_every_stage(network: nn.Module, gate: Gate) -> None:
    checks = checks_of(gate, rewritten(network))
    judge(checks)
    stages = {check.stage for check in checks if check.tolerance is not None}
    assert stages == {
        "body.1.x",
        "body.1.attention.point",
        "body.1.attention.level 0.6",
        "body.1.attention",
        "body.1.z",
        OUTPUT,
    }
    assert {c.case for c in checks if c.stage == "body.1.z"} == {c.name for c in gate.cases.items}
    assert all(check.reason for check in checks)


def test_five_iterations_fail_at_the_root_and_a_live_gate_shows_it_at_the_output(
    network: nn.Module, gate: Gate
) -> None:
    checks = checks_of(gate, rewritten(network, Scheme(name="newton-schulz", iterations=5)))
    with pytest.raises(ParityFailure, match=r"the square root drifted: body\.1\.z"):
        judge(checks)
    output = [c for c in checks if c.stage == OUTPUT and c.metric == "relative_error"]
    assert not all(check.passed for check in output)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("body.0.body.0", r"the backbone drifted: body\.1\.x"),
        ("body.1.spatial.point.out", r"the attention drifted: body\.1\.attention\.point"),
        ("body.1.spatial.levels.0.project", r"the attention drifted: .*attention\.level 0\.6"),
        ("tail.2", "the tail drifted: output"),
    ],
)
def test_a_weight_off_by_a_thousandth_is_found_at_its_stage(
    network: nn.Module, gate: Gate, module: str, message: str
) -> None:
    broken = rewritten(network)
    with torch.no_grad():
        broken.get_submodule(module).weight.mul_(1.001)  # type: ignore[operator]
    with pytest.raises(ParityFailure, match=message) as failure:
        judge(checks_of(gate, broken))
    assert failure.value.checks


def test_a_model_that_gives_nan_fails(network: nn.Module, gate: Gate) -> None:
    broken = rewritten(network)
    with torch.no_grad():
        broken.get_submodule("tail.2").bias.fill_(math.nan)  # type: ignore[operator]
    checks = checks_of(gate, broken)
    with pytest.raises(ParityFailure, match="not finite"):
        judge(checks)
    assert {c.value for c in checks if c.stage == OUTPUT and c.metric == "relative_error"} == {None}


def test_the_gate_judges_psnr_only_for_trained_weights(network: nn.Module, gate: Gate) -> None:
    assert facts_of(network, steps=7).training["steps"] == 7
    y = gate.reference[OUTPUT] * 1.01
    for trained in (False, True):
        judged = Gate(**{**vars(gate), "trained": trained}).output_checks("m", y)
        limits = {c.tolerance for c in judged if c.metric == "psnr_change_db"}
        assert limits == ({0.01} if trained else {None})


def test_errors_are_relative_to_the_largest_value_or_to_a_floor() -> None:
    reference = np.array([0.0, -4.0])
    assert relative_error(np.array([1.0, -4.0]), reference, RELATIVE_ERROR_FLOOR) == 0.25
    assert relative_error(np.array([1e-9]), np.array([0.0]), RELATIVE_ERROR_FLOOR) == pytest.approx(
        1e-3
    )
    assert relative_error(np.array([np.inf]), reference[:1], RELATIVE_ERROR_FLOOR) == math.inf
    assert unit_error(np.array([0.01]), np.array([1e-3])) == pytest.approx(9e-3)
    assert norm_error(np.array([3.0, 0.0]), np.array([3.0, 4.0])) == pytest.approx(0.8)


def test_a_gate_of_some_tiles_keeps_each_tile_with_its_reference(gate: Gate) -> None:
    part = gate.part([4, 1])
    assert [case.name for case in part.cases.items] == ["one bright voxel", "real 1"]
    assert part.cases.batch.shape == (2, 1, TILE, TILE)
    np.testing.assert_array_equal(part.reference[OUTPUT][0], gate.reference[OUTPUT][4])
    assert copy.copy(part).trained is gate.trained
