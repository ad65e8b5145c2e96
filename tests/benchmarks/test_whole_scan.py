"""The whole-scan benchmark on a tiny scan: competitors agree, samples are kept and resumed."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.unit_scan import fit, hr_volume, spread
from benchmarks.whole_scan.__main__ import earlier, main
from benchmarks.whole_scan.competitor import starts
from poan_train.degrade import degrade
from tests.tiny.networks import TILE

AGAINST = "torch-eager,onnxruntime,openvino-f32"
"""Without torch-compile, which needs a C++ compiler and minutes."""


def arguments(tiny: tuple[Path, Path], out: Path, *more: str) -> list[str]:
    ckpt, model = tiny
    named = ["--ckpt", str(ckpt), "--model", str(model), "--out", str(out)]
    return [*named, "--size", "44", "--slices", "2", *more]


@pytest.mark.slow
def test_all_contenders_agree_with_pytorch(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("monai", reason="needs monai")
    out = tmp_path / "results" / "tiny.json"
    assert main(arguments(tiny, out, "--against", AGAINST)) == 0
    document = json.loads(out.read_text())
    rows = document["summary"]["rows"]
    assert set(rows) == {*AGAINST.split(","), "poan-run", "poan-run-fp32"}
    for name, row in rows.items():
        # float32 drift and one rounding to int16: half a unit of 16,000 each; poan-run takes bf16,
        # of 8 bits, where the processor has it
        tolerance = 5e-3 if name == "poan-run" else 2e-4
        assert row["largest_difference_away_from_seams"] <= tolerance, name
        assert abs(row["psnr_less_reference_db"]) < (0.5 if name.startswith("poan") else 1e-3)
        assert row["peak_mib"] > 30
        assert 0 < row["added_mib"] < row["peak_mib"]
        assert -0.1 < row["taken_by_others"] < 1  # the kernel counts in steps of 10 ms
        assert 0 < row["inference_s"] < row["wall_s"]
        assert row["scaled_to_whole_scan_s"] == pytest.approx(row["wall_s_per_slice"] * 96)
    ratios = document["summary"]["ratios"]["poan-run"]
    expected = rows["torch-eager"]["wall_s"] / rows["poan-run"]["wall_s"]
    assert ratios["torch-eager"]["time"] == pytest.approx(expected)
    foreseen = document["predicted"]["poan-run"]
    assert rows["poan-run"]["predicted_s"] == foreseen["total_s"] > 0
    assert out.with_suffix(".png").stat().st_size > 1000


@pytest.mark.slow
def test_a_later_call_adds_only_the_samples_that_are_missing(
    tiny: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "tiny.json"
    alone = ["--against", "onnxruntime", "--poan", "=--backend onnxruntime"]

    def counts() -> dict[str, int]:
        samples = json.loads(out.read_text())["samples"]
        names = [sample["contender"] for sample in samples]
        return {name: names.count(name) for name in sorted(set(names))}

    assert main(arguments(tiny, out, *alone)) == 0
    assert counts() == {"onnxruntime": 1, "poan-run": 1}
    assert main(arguments(tiny, out, *alone)) == 0  # as many as wanted are there
    assert counts() == {"onnxruntime": 1, "poan-run": 1}
    assert main(arguments(tiny, out, *alone, "--repetitions", "2", "--budget", "0")) == 0
    assert counts() == {"onnxruntime": 1, "poan-run": 1}
    assert main(arguments(tiny, out, *alone, "--fresh")) == 0
    assert counts() == {"onnxruntime": 1, "poan-run": 1}


def test_an_unknown_competitor_is_one_line(
    tiny: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tiny, tmp_path / "x.json", "--against", "tensorflow")) == 2
    assert "expected some of torch-eager" in capsys.readouterr().err


def test_the_scan_has_the_wanted_grid_and_range() -> None:
    volume = hr_volume(None, (5, 30, 24))
    assert volume.shape == (5, 30, 24)
    assert volume.max() == 16_000
    assert volume.min() == 0
    np.testing.assert_array_equal(volume, np.rint(volume))
    assert degrade(volume, 2, "bicubic").shape == (5, 15, 12)


def test_a_volume_is_cropped_padded_and_repeated_to_the_grid() -> None:
    slices = np.arange(2 * 4 * 4.0).reshape(2, 4, 4)
    fitted = fit(slices, (3, 2, 6))
    assert fitted.shape == (3, 2, 6)
    np.testing.assert_array_equal(fitted[0, :, 1:5], slices[0, 1:3])
    np.testing.assert_array_equal(fitted[2], fitted[1])
    assert fitted[:, :, [0, 5]].max() == 0
    assert spread(np.arange(9), 3).tolist() == [0, 4, 8]


def test_competitors_lay_tiles_as_monai_does() -> None:
    inferers = pytest.importorskip("monai.inferers.utils", reason="needs monai")
    for extent, overlap in ((44, 4), (30, 2), (TILE, 0)):
        share = (overlap / TILE,) * 2
        interval = inferers._get_scan_interval((extent,) * 2, (TILE,) * 2, 2, share)
        laid = inferers.dense_patch_slices((extent,) * 2, (TILE,) * 2, interval)
        assert sorted({rows.start for rows, _ in laid}) == starts(extent, TILE, overlap)


def test_another_model_discards_the_samples_of_poan_run_alone() -> None:
    facts = {"scan": "a", "model": {"name": "m", "model.onnx": "1"}}
    samples = [{"contender": "onnxruntime"}, {"contender": "poan-run-fp32"}]
    document = {"facts": facts, "predicted": {"poan-run-fp32": {}}, "samples": samples}
    assert earlier(dict(document), dict(facts)) == document
    exported_again = {**facts, "model": {"name": "m", "model.onnx": "2"}}
    kept = earlier(dict(document), exported_again)
    assert (kept["samples"], kept["predicted"]) == ([{"contender": "onnxruntime"}], {})
    assert earlier(dict(document), {**facts, "scan": "b"})["samples"] == []
