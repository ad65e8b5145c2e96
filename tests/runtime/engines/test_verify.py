"""poan-run --verify: the stored vectors, run here, decide."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from poan_runtime.commands import run as cli
from poan_runtime.engines.backend import Backend, OpenedBackend
from poan_runtime.engines.verify import (
    Case,
    look,
    read_vectors,
    run_case,
    worst_error,
    write_gpu_verdict,
)
from poan_runtime.engines.verify import verify as judge
from poan_runtime.errors import PoanError
from poan_runtime.models.find import find_model, shipped_models
from poan_runtime.models.manifest import read_manifest
from tests.tiny.graphs import SCALE, TILE, residual_graph, sha256

pytest.importorskip("tensorrt_rtx", reason="the folder under test holds a real plan")
Array = NDArray[np.float32]
Edit = Callable[[Callable[[dict[str, Any]], None]], None]


def verify(path: Path) -> int:
    return cli.main(["--verify", str(path), "--threads", "1", "--backend", "onnxruntime"])


def test_a_good_model_passes_and_the_verdict_is_written_and_nothing_else(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = json.loads((folder / "manifest.json").read_text())
    assert verify(folder / "model.onnx") == 0
    assert "parity pass" in capsys.readouterr().out
    after = json.loads((folder / "manifest.json").read_text())
    parity = after["files"][0].pop("parity")
    assert after == before
    assert parity["verdict"] == "pass"
    (check,) = parity["checks"]
    assert (check["file"], check["case"], check["stage"]) == ("model.onnx", "real_0", "output")
    assert check["value"] <= check["tolerance"] == 1e-4
    read_manifest(folder)  # and it is still a valid manifest


def test_a_model_that_answers_otherwise_fails_with_status_3_and_is_then_refused(
    folder: Path, scan: Path, edit_manifest: Edit, capsys: pytest.CaptureFixture[str]
) -> None:
    model = residual_graph()
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "tail.bias")
    shifted = numpy_helper.to_array(bias) + np.float32(1e-2)
    bias.CopyFrom(numpy_helper.from_array(shifted, "tail.bias"))
    onnx.save(model, folder / "model.onnx")
    digest = sha256(folder / "model.onnx")
    edit_manifest(lambda m: m["files"][0].update(sha256=digest))
    assert verify(folder / "model.onnx") == 3
    assert "parity fail" in capsys.readouterr().out
    assert cli.main([str(folder / "model.onnx"), str(scan)]) == 2
    assert "its parity verdict is fail" in capsys.readouterr().err
    onnx.save(residual_graph(), folder / "model.onnx")
    digest = sha256(folder / "model.onnx")
    edit_manifest(lambda m: m["files"][0].update(sha256=digest))
    assert verify(folder / "model.onnx") == 0  # a failed verdict can be mended


def test_the_exporters_tolerance_is_used_where_it_states_one(
    folder: Path, edit_manifest: Edit
) -> None:
    check = {
        "file": "model.onnx",
        "stage": "output",
        "case": "real 0",
        "metric": "relative_error",
        "value": 0.0,
        "tolerance": 1e-12,
        "reason": "tighter than float32 can be",
    }
    edit_manifest(lambda m: m["parity"]["checks"].append(check))
    status = verify(folder / "model.onnx")
    (written,) = json.loads((folder / "manifest.json").read_text())["files"][0]["parity"]["checks"]
    assert status == (0 if written["value"] <= 1e-12 else 3)
    assert written["tolerance"] == 1e-12
    assert written["reason"] == "tighter than float32 can be"


def test_a_plan_is_not_judged_by_its_onnx_file(
    folder: Path, no_gpu: None, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (folder / "manifest.json").read_bytes()
    assert cli.main(["--verify", str(folder / "engine.plan")]) == 2
    assert "no GPU" in capsys.readouterr().err
    assert (folder / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda path: path.unlink(), "there is no such file"),
        (lambda path: path.write_bytes(b"other"), "expected sha256"),
    ],
)
def test_vectors_that_are_not_those_of_the_manifest_are_refused(
    break_it: Callable[[Path], None], message: str, folder: Path
) -> None:
    break_it(folder / "vectors.npz")
    with pytest.raises(PoanError, match=message):
        read_vectors(read_manifest(folder), folder)


def store(folder: Path, edit_manifest: Edit, **arrays: Any) -> None:
    np.savez(folder / "vectors.npz", **arrays)
    digest = sha256(folder / "vectors.npz")
    edit_manifest(lambda m: m["vectors"].update(sha256=digest))


def test_vectors_of_a_wrong_shape_are_refused_with_both_shapes(
    folder: Path, edit_manifest: Edit
) -> None:
    tiles, coarse = np.zeros((1, 1, TILE, TILE)), np.zeros((1, 1, TILE, TILE))
    store(folder, edit_manifest, input_a=tiles, output_a=coarse)
    side = SCALE * TILE
    with pytest.raises(PoanError) as refusal:
        read_vectors(read_manifest(folder), folder)
    assert f"a: expected {(1, 1, side, side)}, got {coarse.shape}" in str(refusal.value)
    store(folder, edit_manifest, input_a=tiles)
    with pytest.raises(PoanError, match="expected output_a beside input_a"):
        read_vectors(read_manifest(folder), folder)


def test_the_worst_error_is_that_of_the_worst_tile_and_none_where_not_finite() -> None:
    reference = np.float32([[[[2.0]]], [[[10.0]]]])
    answer = np.float32([[[[2.5]]], [[[11.0]]]])
    assert worst_error(answer, reference, 1e-6) == 0.25
    assert worst_error(np.float32([[[[1e-3]]]]), np.zeros((1, 1, 1, 1), np.float32), 0.1) == (
        pytest.approx(1e-2)  # against the floor; float32 rounding of 1e-3
    )
    assert worst_error(np.float32([[[[np.nan]]]]), reference[:1], 1e-6) is None


def test_scans_beside_verify_are_a_usage_error(folder: Path) -> None:
    with pytest.raises(SystemExit) as usage:
        cli.main(["--verify", str(folder), "scan.nii"])
    assert usage.value.code == 2


class Rows(Backend):
    """Repeats voxels and adds to each row of a batch what it was told."""

    def __init__(self, *added: float) -> None:
        self.added = np.float32(added)
        self.batches: list[int] = []

    def run(self, batch: Any) -> Any:
        self.batches.append(len(batch))
        wrong = np.resize(self.added, len(batch))[:, None, None, None]
        return batch.repeat(SCALE, 2).repeat(SCALE, 3) + wrong


def test_a_plan_is_judged_in_the_batch_that_it_runs_in(folder: Path) -> None:
    """A kernel for a batch of one is another kernel."""
    rows = Rows(0.0)
    judge(find_model(folder / "engine.plan"), rows)
    assert rows.batches == [2, 2, 2]  # three tiles, each as a full batch of the profile


def test_rows_of_equal_tiles_must_be_equal_and_the_worst_row_is_judged() -> None:
    tiles = np.random.default_rng(0).random((2, 1, 4, 4), np.float32)
    answers, spread = run_case(Rows(0.0, 0.0, 0.5), tiles, 3)
    assert spread == pytest.approx(0.5, abs=1e-6)  # float32 rounding of a sum near 1
    assert np.allclose(answers - tiles.repeat(SCALE, 2).repeat(SCALE, 3), 0.5, atol=1e-6)
    assert run_case(Rows(0.0, np.nan), tiles, 2)[1] is None


def test_a_difference_between_rows_fails_the_verdict(folder: Path) -> None:
    found = judge(find_model(folder / "engine.plan"), Rows(0.0, 1e-7))
    differs = [check for check in found.checks if check.metric == "row_difference"]
    assert [check.tolerance for check in differs] == [0.0]
    assert differs[0].value > 0
    assert found.verdict == "fail"


def test_verdicts_of_two_gpus_stand_side_by_side(folder: Path) -> None:
    model = find_model(folder / "model.onnx")
    for device, version in (("A", "1.2.3"), ("B", "1.2.3"), ("A", "1.2.9"), ("A", "1.3.0")):
        opened = OpenedBackend(
            backend=Rows(0.0),
            name="onnxruntime",
            device=f"cuda:0 ({device})",
            version=version,
            reason="",
        )
        write_gpu_verdict(model, opened, judge(model, opened.backend))
    manifest = read_manifest(folder)
    known = [(found.device, found.version) for found in manifest.device_verdicts]
    assert known == [("B", "1.2.3"), ("A", "1.2.9"), ("A", "1.3.0")]
    assert manifest.file("model.onnx").parity is None  # type: ignore[union-attr]


class Right(Backend):
    """Answers a stored case's tiles with its reference."""

    def __init__(self, case: Case) -> None:
        self.case = case

    def run(self, batch: Array) -> Array:
        index = int(np.argmin(np.abs(self.case.tiles - batch[:1]).sum(axis=(1, 2, 3))))
        return self.case.reference[index : index + 1].repeat(len(batch), axis=0)


def with_stages(folder: Path, edit_manifest: Edit) -> Array:
    """Vectors with a z beside tiles and answers; gives that z."""
    with np.load(folder / "vectors.npz") as arrays:
        kept = dict(arrays)
    z = np.random.default_rng(1).random((3, 8), np.float32)
    store(folder, edit_manifest, **kept, **{"stage_real_0:body.8.z": z})
    return z


@pytest.mark.parametrize(
    ("wrong", "verdict"), [(0.0, "pass"), (1e-3, "pass"), (0.3, "fail"), (np.nan, "fail")]
)
def test_a_wrong_root_fails_the_verdict_though_the_output_hides_it(
    wrong: float, verdict: str, folder: Path, edit_manifest: Edit
) -> None:
    z = with_stages(folder, edit_manifest)
    model = find_model(folder / "engine.plan")
    (case,) = read_vectors(model.manifest, folder)

    asked: list[list[str]] = []

    def inside(tiles: Mapping[str, Array], stages: Sequence[str]) -> dict[str, dict[str, Array]]:
        asked.append([*tiles, *stages])
        return {"real_0": {"body.8.z": np.float32((1 + wrong) * z)}}

    found = judge(model, Right(case), looked=look(model, inside))
    assert asked == [["real_0", "body.8.z"]]
    assert found.verdict == verdict
    output = next(c for c in found.checks if c.stage == "output" and c.metric == "unit_error")
    assert output.value == 0
    stage = next(check for check in found.checks if check.stage == "body.8.z")
    if np.isnan(wrong):
        assert stage.value is None
    else:
        assert stage.value == pytest.approx(wrong, abs=1e-6)  # float32 rounding of z


def test_vectors_without_stages_are_judged_by_the_output_alone(folder: Path) -> None:
    def inside(tiles: object, stages: object) -> dict[str, dict[str, Array]]:
        raise AssertionError("there is nothing to look at")

    assert look(find_model(folder / "engine.plan"), inside) == []


@pytest.mark.parametrize("shipped", shipped_models(), ids=lambda folder: folder.name)
def test_a_shipped_model_has_z_and_the_attention_of_real_and_of_hard_tiles(shipped: Path) -> None:
    cases = read_vectors(read_manifest(shipped), shipped)
    assert {case.name for case in cases} == {"real_0", "constant", "one_bright_voxel"}
    for case in cases:
        assert {stage.split(".")[-1] for stage in case.stages} == {"z", "attention"}
