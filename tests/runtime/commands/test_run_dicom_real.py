"""poan-run on real series: DICOM in gives what NIfTI from dcm2niix gives, integer by integer."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from poan_runtime.commands.run import main
from tests.conftest import MakeModel
from tests.runtime.images.dicom.made import converted

REAL = [
    ("philips_brainix_flair", "401", 0),
    ("made_brainix_flair_j2k", "401", 0),
    ("philips_enhanced_b0", "801a", 0),
    ("philips_enhanced_b0", "801b", 1),
    ("philips_pcasl_classic", "1901", 0),
    ("philips_pcasl_enhanced", "1901", 0),
    ("siemens_xa10_enhanced", "6", 0),
]
"""Folder, series and which of dcm2niix's files it is."""
ALIKE = ["--native", "off", "--axis", "2"]
"""A DICOM header tells of matrix and slices what NIfTI does not: what it tells is left aside."""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "series", "which"), REAL)
def test_integers_and_affine_are_those_of_the_converted_series(
    shared_data: Path, tmp_path: Path, make_model: MakeModel, name: str, series: str, which: int
) -> None:
    folder, model = shared_data / "dicom" / name, str(make_model(smooth=True))
    out, ours, theirs = (str(tmp_path / name) for name in ("out", "ours.nii", "theirs.nii"))
    how = ["--series", series, *ALIKE]
    assert main([model, str(folder), *how, "-o", out, "--nifti", ours]) == 0
    reference = converted(folder, tmp_path / "nii", "-p", "n")[which]
    assert main([model, str(reference), *ALIKE, "-o", theirs]) == 0
    derived = converted(Path(out), tmp_path / "back", "-p", "n")[0]
    made, expected, back = (nib.load(path) for path in (ours, theirs, derived))
    integers = np.asarray(expected.dataobj.get_unscaled())
    for found in (made, back):
        assert np.array_equal(np.asarray(found.dataobj.get_unscaled()), integers)
        assert (found.dataobj.slope, found.dataobj.inter) == (
            expected.dataobj.slope,
            expected.dataobj.inter,
        )
        np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)  # the figure


@pytest.mark.slow
@pytest.mark.parametrize(("name", "series", "which"), REAL)
def test_real_values_are_those_of_dcm2niix_with_its_own_scaling(
    shared_data: Path, tmp_path: Path, make_model: MakeModel, name: str, series: str, which: int
) -> None:
    folder, model = shared_data / "dicom" / name, str(make_model(smooth=True))
    ours, theirs = str(tmp_path / "ours.nii"), str(tmp_path / "theirs.nii")
    assert main([model, str(folder), "--series", series, *ALIKE, "-o", ours]) == 0
    reference = converted(folder, tmp_path / "nii")[which]
    assert main([model, str(reference), *ALIKE, "-o", theirs]) == 0
    made, expected = nib.load(ours), nib.load(theirs)
    # dcm2niix takes Philips' floating-point units, poan those that the scanner shows: a factor
    # between slopes, one offset of the intercepts in units of them
    unit = made.dataobj.slope
    scale = unit / expected.dataobj.slope
    apart = np.abs(expected.get_fdata() * scale - made.get_fdata()).max()
    offset = abs(expected.dataobj.inter * scale - made.dataobj.inter)
    # each rounds to its own grid: one unit, where float32 falls on the two sides of a half
    assert apart <= 1.001 * unit + offset
    assert offset <= 0.02 * unit
