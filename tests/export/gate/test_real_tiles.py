"""Tiles of the gate."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from poan_export.gate import real_tiles
from poan_export.gate.real_tiles import Scans, hr_tiles, scan_paths
from poan_runtime.errors import PoanError
from poan_train.degrade import degrade


def test_packaged_scans_give_real_tiles_and_every_hard_case() -> None:
    cases = Scans(None, 12, 3, {"method": "bicubic"}).gate_cases()
    by_name = {case.name: case for case in cases.items}
    assert [*by_name] == [
        "real 0",
        "real 1",
        "constant",
        "background",
        "one bright voxel",
        "intensities x 1e-3",
        "intensities x 1e3",
    ]
    real = by_name["real 0"]
    assert real.hr is not None
    assert real.lr.shape == (1, 12, 12)
    assert real.hr.shape == (1, 36, 36)
    assert real.lr.std() > 0.05
    assert not np.array_equal(real.lr, by_name["real 1"].lr)
    np.testing.assert_allclose(degrade(real.hr, 3, "bicubic"), real.lr, rtol=0, atol=1e-5)
    np.testing.assert_allclose(by_name["intensities x 1e3"].lr, real.lr * 1e3, rtol=1e-6)
    np.testing.assert_allclose(by_name["intensities x 1e-3"].lr, real.lr * 1e-3, rtol=1e-6)
    assert np.unique(by_name["constant"].lr).tolist() == [0.5]
    assert not by_name["background"].lr.any()
    assert by_name["one bright voxel"].lr.sum() == 1.0
    assert cases.batch.shape == (7, 1, 12, 12)
    assert cases.batch.dtype == np.float32


def save(path: Path, data: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(data.astype(np.float32), np.diag([1, 1, 5, 1])), path)
    return path


def test_the_most_varied_slices_are_taken_and_small_ones_reflected(tmp_path: Path) -> None:
    volume = np.zeros((8, 6, 4))
    volume[:, :, 2] = np.arange(48).reshape(8, 6)
    volume[:, :, 1] = 0.1 * volume[:, :, 2]
    first, second = hr_tiles(save(tmp_path / "v.nii.gz", volume), 10, 3)
    np.testing.assert_allclose(second, 0.1 * first, rtol=1e-6)
    np.testing.assert_array_equal(first[0, 1:9, 2:8], volume[:, :, 2])
    np.testing.assert_array_equal(first[0, 0], first[0, 1])  # mirrored at the edge


def test_a_folder_of_scans_is_used_and_an_empty_one_refused(tmp_path: Path) -> None:
    with pytest.raises(PoanError, match=r"no \.nii or \.nii\.gz file"):
        scan_paths(tmp_path)
    with pytest.raises(PoanError, match="no such file or folder"):
        scan_paths(tmp_path / "absent.nii")
    random = np.random.default_rng(0).random((24, 24, 3))
    save(tmp_path / "scan.nii.gz", random)
    cases = Scans(tmp_path, 12, 2, {"method": "kspace"}).gate_cases()
    assert cases.source == str(tmp_path)
    assert sum(case.hr is not None for case in cases.items) == 2


def test_scans_without_signal_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "empty.nii.gz", np.zeros((16, 16, 3)))
    with pytest.raises(PoanError, match="no slice with signal"):
        Scans(tmp_path, 12, 2, {"method": "bicubic"}).gate_cases()


def test_each_scan_is_read_once_for_the_gate_and_for_calibration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counted(path: Path, size: int, count: int) -> list[np.ndarray]:
        read.append(path.name)
        return hr_tiles(path, size, count)

    monkeypatch.setattr(real_tiles, "hr_tiles", counted)
    for i in range(3):
        random = np.random.default_rng(i).random((24, 24, 3))
        save(tmp_path / f"{i}.nii.gz", random)
    scans = Scans(tmp_path, 12, 2, {"method": "bicubic"})
    gate = scans.gate_cases()
    assert len(scans.truths) == 9  # three slices of three scans
    assert scans.truths is scans.truths
    assert read == ["0.nii.gz", "1.nii.gz", "2.nii.gz"]
    np.testing.assert_array_equal(gate.items[1].lr, scans.truths[3].lr)  # the second scan's first
