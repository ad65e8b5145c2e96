"""A small BIDS dataset."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

MakeDataset = Callable[..., Path]


@pytest.fixture
def make_dataset(tmp_path: Path) -> MakeDataset:
    """Write a raw dataset of seeded scans, 20x18x3; gives its folder."""

    def make(names: Sequence[str] = ("sub-01/anat/sub-01_T2w.nii.gz",)) -> Path:
        root = tmp_path / "raw"
        root.mkdir()
        about = {"Name": "made", "BIDSVersion": "1.10.0", "Authors": ["A", "B"]}
        (root / "dataset_description.json").write_text(json.dumps(about))
        (root / "README").write_text("Scans made for a test of poan.\n")
        rng = np.random.default_rng(0)
        for name in names:
            image = nib.Nifti1Image(
                rng.integers(1, 1000, (20, 18, 3)).astype(np.int16), np.diag([0.9, 0.9, 4.0, 1.0])
            )
            image.header.set_xyzt_units("mm", "sec")
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            nib.save(image, root / name)
        return root

    return make
