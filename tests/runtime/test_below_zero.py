"""Ringing below zero is cut off where the scan has no negative voxel, and counted."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import poan_runtime
from poan_runtime.commands.run import main
from poan_runtime.network import Settings

SHARPEN = np.float32([[0, -1, 0], [-1, 5, -1], [0, -1, 0]])


@pytest.fixture
def ringing(make_model: Any) -> Path:
    """A network that sharpens: it undershoots beside edges."""
    model: Path = make_model(kernel=SHARPEN)
    return model


def edges() -> np.ndarray:
    data = np.random.default_rng(2).integers(400, 1084, (20, 18, 3)).astype(np.int16)
    data[:10] = 0
    return data


def expected_of(data: np.ndarray) -> np.ndarray:
    around = np.pad(data.astype(np.int64), ((1, 1), (1, 1), (0, 0)))
    cross = around[:-2, 1:-1] + around[2:, 1:-1] + around[1:-1, :-2] + around[1:-1, 2:]
    return (5 * data.astype(np.int64) - cross).repeat(2, 0).repeat(2, 1)


def test_a_scan_without_negative_voxels_gets_none(
    ringing: Path, make_scan: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, report = edges(), tmp_path / "r.json"
    scan = make_scan(data=data)
    assert main([str(ringing), str(scan), "--report", str(report)]) == 0
    sharp = expected_of(data)
    out = np.asarray(nib.load(tmp_path / "scan_desc-sr.nii.gz").dataobj)
    assert np.array_equal(out, np.maximum(sharp, 0))
    said = capsys.readouterr()
    count = np.count_nonzero(sharp < 0)
    assert f"{count} voxels were below zero, the lowest {sharp.min()} " in said.out
    assert said.err == ""
    (part,) = json.loads(report.read_text())["scans"]
    assert part["below_zero_made_zero"]["voxels"] == count
    # the intensity unit takes each value through two float32 roundings
    assert part["below_zero_made_zero"]["lowest"] == pytest.approx(sharp.min(), rel=1e-6)


def test_what_the_voxel_type_rounds_to_zero_is_not_told(
    ringing: Path, make_scan: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = np.random.default_rng(4).integers(1, 3, (20, 18, 3))  # 5 - 4 * 2 is the lowest: -0.15
    scan = make_scan("steps.nii", data=(0.05 * steps).astype("<f4"), dtype="<f4")
    assert main([str(ringing), str(scan), "--axis", "2"]) == 0
    assert "were below zero" in capsys.readouterr().out
    assert main([str(ringing), str(scan), "--axis", "2", "--dtype", "int16", "--overwrite"]) == 0
    assert "were below zero" not in capsys.readouterr().out


def test_they_stay_where_the_user_or_the_scan_says_so(
    ringing: Path, make_scan: Any, tmp_path: Path
) -> None:
    data = edges()
    assert main([str(ringing), str(make_scan(data=data)), "--keep-negative"]) == 0
    out = np.asarray(nib.load(tmp_path / "scan_desc-sr.nii.gz").dataobj)
    assert np.array_equal(out, expected_of(data))
    data[0, 0, 0] = -1
    assert main([str(ringing), str(make_scan("signed.nii", data=data))]) == 0
    out = np.asarray(nib.load(tmp_path / "signed_desc-sr.nii.gz").dataobj)
    assert np.array_equal(out, expected_of(data))


def test_each_volume_of_a_series_keeps_its_own_sign(ringing: Path) -> None:
    first = edges().astype(np.float32)
    second = first.copy()
    second[0, 0, 0] = -1
    series = poan_runtime.Volume(data=np.stack([first, second], -1), affine=np.diag([1, 1, 4, 1.0]))
    fine = poan_runtime.upscale(series, ringing, Settings(axis=2)).data
    assert fine[..., 0].min() == 0
    assert fine[..., 1].min() < -100


def test_ringing_in_air_is_no_warning_and_clipping_at_the_top_is_one(
    ringing: Path, make_scan: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    data = edges().astype(np.uint16)
    assert main([str(ringing), str(make_scan("air.nii", data=data, dtype="<u2"))]) == 0
    said = capsys.readouterr()
    assert "below zero" in said.out
    assert said.err == ""
    data = (60 * edges().astype(np.int64)).astype(np.uint16)
    assert main([str(ringing), str(make_scan("top.nii", data=data, dtype="<u2"))]) == 0
    beyond = np.count_nonzero(expected_of(data) > 65535)
    assert f"{beyond} voxels do not fit into uint16 (0 to 65535)" in capsys.readouterr().err
