from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from poan_train import networks

SHARED = Path(__file__).resolve().parents[2].parent / "shared/data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the development scans are not here")
    return SHARED


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POAN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tiny():
    """A function to a POAN of 8 channels and 2 blocks with seeded weights."""

    def make(scale=2, **changes):
        torch.manual_seed(0)
        values = {"blocks": 2, "poab_after": 1, "channels": 8, "embedding": 4, **changes}
        return networks.build("poan", networks.make_config("poan", scale, **values))

    return make


@pytest.fixture
def scan_folder(tmp_path):
    """Three subjects' volumes, 40x44x5, two T2 and one T1, of smooth seeded shapes."""
    folder = tmp_path / "scans"
    folder.mkdir()
    y, x = np.mgrid[:40, :44]
    rng = np.random.default_rng(1)
    for name in ("sub-1_T2w", "sub-2_T2w", "sub-3_T1w"):
        slices = np.zeros((40, 44, 5), np.int16)
        for z in range(5):
            for _ in range(6):
                cy, cx, r = rng.uniform(8, 32), rng.uniform(8, 36), rng.uniform(2, 9)
                inside = (y - cy) ** 2 + (x - cx) ** 2 < r**2
                slices[..., z][inside] = rng.integers(100, 900)
        affine = np.diag([1.0, 1.0, 4.0, 1.0])
        nibabel.save(nibabel.Nifti1Image(slices, affine), folder / f"{name}.nii.gz")
    return folder
