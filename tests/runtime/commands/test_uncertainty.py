"""`poan-run --uncertainty`: against eight runs of the flipped and turned scan."""

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import poan_runtime
from poan_runtime.commands.run import main
from poan_runtime.images.volume import Volume

LOPSIDED = np.float32([[0.1, 0.3, 0], [0, 0.2, 0.3], [0, 0, 0.1]])
AFFINE = np.array([[0.6, 0.1, 0, -30], [-0.1, 0.6, 0, 5], [0, 0, 4.0, 7], [0, 0, 0, 1]])


@pytest.fixture
def lopsided(make_model: Callable[..., Path]) -> Path:
    """It blurs to one side, so that every flip and rotation answers otherwise."""
    return make_model(kernel=LOPSIDED)


@pytest.fixture
def scan(make_scan: Callable[..., Path]) -> Path:
    data = np.random.default_rng(4).uniform(100, 900, (30, 44, 3)).astype(np.float32)
    return make_scan("scan.nii.gz", dtype="<f4", affine=AFFINE, data=data)


def eight_runs(scan: Path, model: Path) -> list[np.ndarray]:
    """The scan flipped and turned in-plane, super-resolved, and brought back: 8 volumes."""
    stored = nib.load(scan)
    data = np.asarray(stored.dataobj)
    runs = []
    with poan_runtime.load_network(model) as network:
        settings = poan_runtime.Settings(axis=2)
        for turns in range(4):
            for flip in (False, True):
                view = np.rot90(data, turns)
                view = view[:, ::-1] if flip else view
                volume = Volume(data=np.ascontiguousarray(view), affine=stored.affine)
                fine = poan_runtime.upscale(volume, network, settings).data
                fine = fine[:, ::-1] if flip else fine
                runs.append(np.rot90(fine, -turns))
    return runs


def test_the_map_is_the_standard_deviation_of_eight_runs(
    lopsided: Path, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, spread, report = (tmp_path / name for name in ("o.nii.gz", "u.nii.gz", "r.json"))
    options = ["-o", str(out), "--uncertainty", str(spread), "--report", str(report)]
    assert main([str(lopsided), str(scan), *options]) == 0
    runs = eight_runs(scan, lopsided)
    found, result = nib.load(spread), nib.load(out)
    values = np.asarray(found.dataobj)
    # The tiles of 16 overlap, and the network is exact beside them. Values of 900 in float32.
    np.testing.assert_allclose(values, np.std(runs, axis=0), rtol=1e-3, atol=2e-2)
    np.testing.assert_allclose(result.dataobj, np.mean(runs, axis=0), rtol=1e-5)
    assert values.mean() > 50  # the runs do differ
    assert found.shape == result.shape == (60, 88, 3)
    assert np.array_equal(found.affine, result.affine)
    assert found.header["sform_code"] == result.header["sform_code"]
    assert found.get_data_dtype() == np.float32
    (part,) = json.loads(report.read_text())["scans"]
    assert part["plan"]["self_ensemble"] is True
    assert part["uncertainty"]["mean"] == pytest.approx(values.mean(), rel=1e-5)
    # read from bins 2.3 % wide
    ninety_five = np.percentile(values, 95)
    assert part["uncertainty"]["percentile_95"] == pytest.approx(ninety_five, rel=0.03)
    assert "standard deviation over 8 flips and rotations" in capsys.readouterr().out


def test_the_result_is_that_of_the_self_ensemble_bit_for_bit(
    lopsided: Path, scan: Path, tmp_path: Path
) -> None:
    one, other, spread = (tmp_path / name for name in ("one.nii", "other.nii", "u.nii"))
    assert main([str(lopsided), str(scan), "-o", str(one), "--self-ensemble"]) == 0
    assert main([str(lopsided), str(scan), "-o", str(other), "--uncertainty", str(spread)]) == 0
    assert np.array_equal(nib.load(one).dataobj, nib.load(other).dataobj)


def test_a_map_in_a_folder_is_named_after_its_scan_and_is_no_scan_of_the_next_run(
    lopsided: Path, scan: Path, tmp_path: Path
) -> None:
    options = ["--uncertainty", f"{scan.parent}/", "-q"]
    assert main([str(lopsided), str(scan), *options]) == 0
    assert (scan.parent / "scan_desc-uncertainty.nii.gz").is_file()
    assert main([str(lopsided), str(scan.parent), "-o", f"{tmp_path / 'all'}/", "-q"]) == 0
    assert [path.name for path in (tmp_path / "all").iterdir()] == ["scan_desc-sr.nii.gz"]


def test_a_map_that_would_replace_the_scan_is_refused(lopsided: Path, scan: Path) -> None:
    assert main([str(lopsided), str(scan), "--uncertainty", str(scan), "--overwrite"]) == 2


def test_of_a_dicom_series_the_map_is_nifti(
    lopsided: Path, shared_data: Path, tmp_path: Path
) -> None:
    series = shared_data / "dicom" / "philips_brainix_flair"
    out, spread = tmp_path / "o.nii.gz", tmp_path / "u.nii.gz"
    options = ["-o", str(out), "--uncertainty", str(spread), "-q"]
    assert main([str(lopsided), str(series), *options]) == 0
    found, result = nib.load(spread), nib.load(out)
    assert found.shape == result.shape
    np.testing.assert_allclose(found.affine, result.affine, atol=1e-6)  # float32 in the header
    assert 0 < np.asarray(found.dataobj).mean() < np.asarray(result.dataobj).mean()
