"""FreeSurfer's volumes are read as nibabel reads them."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import poan_runtime
from poan_runtime.commands.run import main
from poan_runtime.errors import PoanError
from poan_runtime.images.formats import open_source
from tests.runtime.images.conformance import check_source

AFFINE = np.array([[-0.9, 0, 0, 80], [0, 0, 4.0, -90], [0, -0.9, 0, 70], [0, 0, 0, 1]])


@pytest.fixture
def mgz(tmp_path: Path) -> Path:
    data = np.random.default_rng(0).integers(1, 99, (20, 18, 5)).astype(np.int16)
    nib.save(nib.MGHImage(data, AFFINE), tmp_path / "head.mgz")
    return tmp_path / "head.mgz"


def test_a_volume_keeps_the_contract_of_a_source(mgz: Path) -> None:
    check_source(open_source(mgz), np.asarray(nib.load(mgz).dataobj))


def test_a_volume_is_super_resolved_into_nifti(mgz: Path, nearest_x2: Path, tmp_path: Path) -> None:
    assert main([str(nearest_x2), str(mgz)]) == 0
    out, before = nib.load(tmp_path / "head_desc-sr.nii.gz"), nib.load(mgz)
    expected = np.asarray(before.dataobj).repeat(2, 0).repeat(2, 1)
    assert np.array_equal(np.asarray(out.dataobj), expected)
    assert out.get_data_dtype() == np.int16
    np.testing.assert_allclose(out.header.get_zooms(), (0.45, 0.45, 4), rtol=1e-6)


def test_a_damaged_volume_is_one_line(mgz: Path) -> None:
    for content in (b"", b"no volume", mgz.read_bytes()[:200]):
        mgz.write_bytes(content)
        with pytest.raises(PoanError, match="not a FreeSurfer volume, or a damaged one"):
            poan_runtime.read_volume(mgz)
