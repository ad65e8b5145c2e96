"""`poan-run --explain`: what it counts is what a run does, and it writes no scan."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from poan_runtime.commands import run as cli
from poan_runtime.report.explain import RepeatVoxels, overlap_share
from poan_runtime.tiles.layout import lay_out
from tests.runtime.engines.conformance import check_backend

PARTS = {"backbone": 0.75, "tail": 0.25}


@pytest.fixture
def striped(make_scan: Any) -> Path:
    """Three slices of zeros, two of noise; 40x40 makes nine tiles of 16 a slice."""
    data = np.zeros((40, 40, 5), np.int16)
    data[..., 3:] = np.random.default_rng(0).integers(1, 100, (40, 40, 2))
    scan: Path = make_scan(data=data)
    return scan


@pytest.mark.parametrize("more", [[], ["--no-skip"], ["--batch", "4"], ["--overlap", "3"]])
def test_tiles_are_counted_as_a_run_counts_them(
    more: list[str], make_model: Any, striped: Path, tmp_path: Path
) -> None:
    model = make_model(gmac_per_tile=1.0, gmac_per_part=PARTS)
    plan, report = tmp_path / "plan.json", tmp_path / "report.json"
    named = [str(model), str(striped), *more]
    assert cli.main(["--explain", *named, "--report", str(plan)]) == 0
    assert (
        cli.main([*named, "-o", str(tmp_path / "sr.nii"), "--report", str(report), "--labels"]) == 0
    )
    (foreseen,) = json.loads(plan.read_text())["scans"]
    (ran,) = json.loads(report.read_text())["scans"]
    assert foreseen["tiles"]["to_run"] == ran["tiles"]["run"]
    assert foreseen["tiles"]["all"] == ran["tiles"]["run"] + ran["tiles"]["skipped"]
    for fact in ("tile", "halo", "overlap", "batch", "tiles_per_slice", "slices_per_slab"):
        assert foreseen["plan"][fact] == ran["plan"][fact]


def test_the_prediction_is_the_sum_of_what_was_timed(
    make_model: Any, striped: Path, tmp_path: Path
) -> None:
    plan = tmp_path / "plan.json"
    assert cli.main(["--explain", str(make_model()), str(striped), "--report", str(plan)]) == 0
    (found,) = json.loads(plan.read_text())["scans"]
    timed, predicted = found["timed"], found["predicted"]
    assert predicted["network_s"] == pytest.approx(timed["tile_s"] * found["tiles"]["to_run"])
    assert predicted["rest_s"] == pytest.approx(timed["slice_s"] * 5)
    parts = [predicted[name] for name in ("load_s", "read_s", "network_s", "rest_s")]
    assert predicted["total_s"] == pytest.approx(sum(parts))
    assert min(parts) > 0
    assert predicted["peak_bytes"] > 1e7


def test_it_says_engine_tiles_and_work_and_writes_no_scan(
    make_model: Any, striped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(gmac_per_tile=1.0, gmac_per_part=PARTS)
    assert cli.main(["--explain", str(model), str(striped)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^engine     (ONNX Runtime|OpenVINO) \S+ on the CPU$", said, re.MULTILINE)
    assert "19 of 45 tiles, 3 batches of 8" in said  # 18 of noise, and one zero for all others
    assert "9 per slice, 16 x 16, halo 1, overlap 2 x 2" in said
    assert "1.000 GMAC per tile: backbone 75.0%, tail 25.0%" in said
    assert cli.main(["--explain", str(model), str(striped), "--verbose"]) == 0
    assert re.search(r"^why        \S+", capsys.readouterr().out, re.MULTILINE)
    assert [path.name for path in striped.parent.glob("*.nii*")] == [striped.name]


def test_overlap_and_padding_are_counted_as_work() -> None:
    sizes = {"scale": 2, "halo": 0, "overlap": 0, "batch": 1, "best_batch": 1, "most_batch": 1}
    assert overlap_share(lay_out(32, 32, 1, tile=16, **sizes)) == 0
    assert overlap_share(lay_out(24, 32, 1, tile=16, **sizes)) == 0.25
    assert overlap_share(lay_out(8, 8, 1, tile=16, **sizes)) == 0.75


def test_the_network_that_costs_nothing_keeps_the_contract_of_an_engine() -> None:
    check_backend(RepeatVoxels(3), tile=4, scale=3)


def test_signed_zeros_and_many_constants_are_counted_as_a_run_counts_them(
    make_model: Any, make_scan: Any, tmp_path: Path
) -> None:
    signs = np.where(np.arange(16) % 2, np.float32(0.0), np.float32(-0.0))
    data = np.zeros((16, 16, 8 + 100), np.float32)
    data[..., :8] = signs[:, None, None]  # equal values, not one bit pattern: these tiles run
    data[..., 8:] = np.arange(1, 101)  # more constants than a run keeps answers for
    data = np.concatenate([data, data], axis=2)
    scan = make_scan("zeros.nii", data=data, dtype="<f4")
    plan, report = tmp_path / "plan.json", tmp_path / "report.json"
    named = [str(make_model()), str(scan)]
    assert cli.main(["--explain", *named, "--report", str(plan)]) == 0
    assert (
        cli.main([*named, "-o", str(tmp_path / "sr.nii"), "--report", str(report), "--labels"]) == 0
    )
    (foreseen,) = json.loads(plan.read_text())["scans"]
    (ran,) = json.loads(report.read_text())["scans"]
    assert foreseen["tiles"]["to_run"] == ran["tiles"]["run"]
    assert ran["tiles"]["run"] > 100


def test_it_says_axis_shape_and_voxel_size_of_the_output(
    make_model: Any, make_scan: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.json"
    scan = make_scan(shape=(20, 18, 5))
    assert cli.main(["--explain", str(make_model()), str(scan), "--report", str(plan)]) == 0
    said = capsys.readouterr().out
    assert "slices across axis 2" in said
    assert "output     40 x 36 x 5, voxels of 0.45 x 0.45 x 4 mm" in said
    again = ["--explain", str(make_model()), str(scan), "--report", str(plan)]
    assert cli.main(again) == 2
    assert "plan.json: there already; --overwrite replaces it" in capsys.readouterr().err
    assert cli.main([*again, "--overwrite"]) == 0
    (found,) = json.loads(plan.read_text())["scans"]
    assert found["slice_axis"] == 2
    assert found["output"]["shape"] == [40, 36, 5]
    assert found["output"]["spacing"] == pytest.approx([0.45, 0.45, 4.0], rel=1e-6)
