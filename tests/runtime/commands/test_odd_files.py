"""Odd and broken files through `poan-run`: the right volume, or one line."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from poan_runtime import geometry
from tests.runtime.commands.test_run import one_line, poan_run, repeated

REFUSED = {
    "bad_crc.nii.gz": "damaged gzip stream",
    "dtype_rgb24.nii.gz": "got RGB",
    "empty.nii.gz": "empty",
    "huge_dims_lie.nii": "54000000000000 bytes",
    "text_not_nifti.nii": "starts with",
    "truncated_gz.nii.gz": "ends early",
    "truncated_plain.nii": "the file holds 386966",
    "unknown_datatype.nii": "9999",
}


ACCEPTED = [
    "all_zero.nii.gz",
    "big_endian.nii",
    "dtype_float64.nii.gz",
    "dtype_uint8.nii.gz",
    "flipped_left_handed.nii.gz",
    "made_4d_3vol.nii.gz",
    "nan_inf_float32.nii.gz",
    "negative_values.nii.gz",
    "nifti2.nii.gz",
    "no_sform_no_qform.nii.gz",
    "not_gzipped_but_named.nii.gz",
    "oblique_rotated.nii.gz",
    "odd_sized_141x157.nii.gz",
    "real_2d_IXI002_T2.nii.gz",
    "real_2d_IXI002_T2_lowres.nii.gz",
    "real_float64_oblique_epi.nii.gz",
    "real_oblique_fmri_pitch.nii.gz",
    "ref_plain_int16.nii.gz",
    "scl_slope_inter.nii.gz",
    "scl_slope_zero.nii.gz",
    "sform_qform_disagree.nii.gz",
    "single_slice_2d.nii.gz",
    "units_micron.nii.gz",
    "with_header_extension.nii.gz",
]


def test_the_odd_folder_is_known(shared_data: Path) -> None:
    assert {path.name for path in (shared_data / "odd").iterdir()} == {*REFUSED, *ACCEPTED}


@pytest.mark.parametrize("name", REFUSED)
def test_an_odd_file_that_cannot_be_read_is_one_line_and_exit_2(
    name: str,
    shared_data: Path,
    nearest_x2: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert poan_run(nearest_x2, shared_data / "odd" / name, "-o", tmp_path / "out.nii.gz") == 2
    assert REFUSED[name] in one_line(capsys)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ACCEPTED)
def test_an_odd_file_that_can_be_read_gives_the_right_volume(
    name: str, shared_data: Path, make_model: Any, tmp_path: Path
) -> None:
    model = make_model(tile=48, halo=2, overlap=6)
    scan, out = shared_data / "odd" / name, tmp_path / "out.nii.gz"
    assert poan_run(model, scan, "-o", out, "--backend", "onnxruntime") == 0
    if name == "not_gzipped_but_named.nii.gz":
        scan = tmp_path / "plain.nii"
        scan.write_bytes((shared_data / "odd" / name).read_bytes())
    before, after = nib.load(scan), nib.load(out)
    values = np.nan_to_num(np.asarray(before.dataobj), nan=0, posinf=0, neginf=0)
    # Integers come back exactly; floats pass through float32 and at most 8 roundings.
    tolerance = 8 * 6e-8 * np.abs(values).max() if values.dtype.kind == "f" else 0
    np.testing.assert_allclose(np.asarray(after.dataobj), repeated(values), rtol=0, atol=tolerance)
    assert after.get_data_dtype() == before.get_data_dtype()
    assert type(after.header) is type(before.header)
    for field in ("xyzt_units", "qform_code", "sform_code", "intent_code"):
        assert after.header[field] == before.header[field]
    np.testing.assert_allclose(
        geometry.corners(after.affine, after.shape),
        geometry.corners(before.affine, before.shape),
        rtol=1e-6,  # the header's own float32
        atol=1e-3,
    )
