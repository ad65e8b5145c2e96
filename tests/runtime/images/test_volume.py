"""nibabel images in and out."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import poan_runtime
from poan_runtime.errors import PoanError


def test_a_nibabel_image_gives_what_its_file_gives(
    nearest_x2: Path, make_scan: Any, tmp_path: Path
) -> None:
    scan = make_scan()
    image = nib.load(scan)
    image.header.set_slope_inter(0.5, 10)
    nib.save(image, tmp_path / "scaled.nii")
    image = nib.load(tmp_path / "scaled.nii")
    fine = poan_runtime.upscale(image, nearest_x2)
    from_file = poan_runtime.upscale(tmp_path / "scaled.nii", nearest_x2)
    assert np.array_equal(fine.data, from_file.data)
    assert np.array_equal(fine.affine, from_file.affine)
    back = fine.to_nibabel()
    assert np.array_equal(np.asarray(back.dataobj), fine.data)
    np.testing.assert_allclose(back.affine, fine.affine)
    assert (int(back.header["sform_code"]), int(back.header["qform_code"])) == (1, 1)


@pytest.mark.parametrize("name", ["fine.nii", "fine.nii.gz"])
def test_a_volume_is_saved_as_nibabel_reads_it(name: str, tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32)
    volume = poan_runtime.Volume(data=data, affine=np.diag([0.5, 0.5, 4.0, 1.0]))
    volume.save(tmp_path / name)
    image = nib.load(tmp_path / name)
    assert np.array_equal(np.asarray(image.dataobj), data)
    assert np.array_equal(image.affine, volume.affine)
    with pytest.raises(PoanError, match=r"ends in \.nii"):
        volume.save(tmp_path / "fine.png")
