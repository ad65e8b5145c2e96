"""poan-run on DICOM: what it writes, what it says, what it never says."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest

from poan_runtime.commands.run import main
from poan_runtime.images.dicom.read import open_dicom
from tests.runtime.images.dicom.made import ROOT, converted, image, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A made series of 5 slices, 24x20."""
    random = np.random.default_rng(3)
    for k in range(5):
        ds = image(k + 1, (-10.0, -20.0, 4.0 * k), random.integers(1, 1000, (24, 20)))
        write(ds, tmp_path / f"series/{k}.dcm")
    return tmp_path / "series"


def test_a_folder_becomes_a_derived_series_by_default(nearest_x2: Path, folder: Path) -> None:
    assert main([str(nearest_x2), str(folder)]) == 0
    with open_dicom(folder) as coarse, open_dicom(folder.with_name("series_desc-sr")) as fine:
        expected = coarse.read_slices(2, 0, 5).repeat(2, axis=1).repeat(2, axis=2)
        assert np.array_equal(fine.read_slices(2, 0, 5), expected)


def test_nifti_output_equals_that_of_the_converted_series(
    nearest_x2: Path, folder: Path, tmp_path: Path
) -> None:
    reference = converted(folder, tmp_path / "nii", "-p", "n")[0]
    assert main([str(nearest_x2), str(folder), "-o", str(tmp_path / "a.nii.gz")]) == 0
    assert main([str(nearest_x2), str(reference), "-o", str(tmp_path / "b.nii.gz")]) == 0
    ours, theirs = nib.load(tmp_path / "a.nii.gz"), nib.load(tmp_path / "b.nii.gz")
    assert np.array_equal(ours.dataobj.get_unscaled(), theirs.dataobj.get_unscaled())
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-5)  # NIfTI holds float32


def test_one_run_gives_both_a_series_and_nifti(
    nearest_x2: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, both, alone = (str(tmp_path / name) for name in ("out", "both.nii.gz", "alone.nii.gz"))
    assert main([str(nearest_x2), str(folder), "-o", alone]) == 0
    assert main([str(nearest_x2), str(folder), "-o", out, "--nifti", both]) == 0
    assert Path(both).read_bytes() == Path(alone).read_bytes()
    assert len([*Path(out).iterdir()]) == 5
    assert main([str(nearest_x2), str(folder), "-o", alone, "--nifti", both, "--overwrite"]) == 2
    assert main([str(nearest_x2), str(folder), "-o", out + "2", "--nifti", "x.png"]) == 2
    assert main([str(nearest_x2), str(folder), "-o", out + "2", "--nifti", both]) == 2
    assert capsys.readouterr().err.count("\n") == 3
    assert not Path(out + "2").exists()


def test_the_report_and_the_lines_hold_no_patient_data(
    nearest_x2: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    out = str(tmp_path / "out")
    assert main([str(nearest_x2), str(folder), "-o", out, "--report", str(report)]) == 0
    said = "".join(capsys.readouterr()) + report.read_text()
    for secret in ("Secret", "SECRETID", "19700101", ROOT):
        assert secret not in said
    assert [*json.loads(report.read_text())["scans"][0]["input"]["sha256"]] == ["5 DICOM files"]


def test_the_page_of_a_named_patient_names_nobody(
    nearest_x2: Path, folder: Path, tmp_path: Path
) -> None:
    named = folder.rename(folder.with_name("DOE_JANE"))
    page, out = tmp_path / "page.html", str(tmp_path / "out")
    assert main([str(nearest_x2), str(named), "-o", out, "--report", str(page)]) == 0
    html = page.read_text()
    assert "SHA-256 of the input" in html
    for secret in ("Secret^", "SECRETID", "19700101", ROOT, "DOE_"):
        assert secret not in html


def test_list_series_shows_what_series_takes(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--list-series", str(folder)]) == 0
    assert capsys.readouterr().out.split()[:2] == ["7", "20x24x5"]


def test_an_unknown_series_is_one_line_and_writes_nothing(
    nearest_x2: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(nearest_x2), str(folder), "--series", "9"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not folder.with_name("series_desc-sr").exists()


def test_seeded_uids_repeat_from_run_to_run(nearest_x2: Path, folder: Path, tmp_path: Path) -> None:
    runs = []
    for name in "ab":
        out = tmp_path / name
        assert main([str(nearest_x2), str(folder), "-o", str(out), "--uid-seed", "1"]) == 0
        runs.append([pydicom.dcmread(file).SOPInstanceUID for file in sorted(out.iterdir())])
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == 5


def test_a_series_of_another_contrast_than_the_models_is_a_warning(
    make_model: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for contrast, warned in (("T1", True), ("T2", False), ("MR", False)):
        out = str(tmp_path / f"{contrast}.nii.gz")
        assert main([str(make_model(contrast=contrast)), str(folder), "-o", out]) == 0
        said = "looks like T2 by its name, the model was trained on T1" in capsys.readouterr().err
        assert said == warned


@pytest.mark.parametrize(("acquired", "slices"), [("2D", 5), ("3D", 10)])
def test_a_2d_scan_of_thin_slices_is_made_finer_within_them_and_not_across(
    nearest_x2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], acquired: str, slices: int
) -> None:
    random = np.random.default_rng(3)
    for k in range(5):
        ds = image(k + 1, (0.0, 0.0, 1.0 * k), random.integers(1, 1000, (12, 10)))
        ds.MRAcquisitionType = acquired
        write(ds, tmp_path / f"thin/{k}.dcm")
    folder, line = str(tmp_path / "thin"), "across axis 0, as was asked for"
    out = tmp_path / "thin.nii"
    assert main([str(nearest_x2), folder, "-o", str(out)]) == 0
    assert nib.load(out).shape[2] == slices
    assert line not in capsys.readouterr().err
    assert main([str(nearest_x2), folder, "--axis", "0", "-o", str(tmp_path / "out")]) == 0
    assert (line in capsys.readouterr().err) == (acquired == "2D")
