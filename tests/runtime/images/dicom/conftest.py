"""Made series in a temporary folder, and the real ones."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from tests.runtime.images.dicom.made import MakeSeries, image, write

SHARED = Path(__file__).resolve().parents[4].parent / "shared/data/dicom"


@pytest.fixture
def make_series(tmp_path: Path) -> MakeSeries:
    """Write a folder of ``slices`` images; ``change(dataset, k, volume)`` edits or drops one."""

    def make(
        name: str = "series",
        slices: int = 4,
        volumes: int = 1,
        shape: tuple[int, int] = (12, 10),
        change: Callable[[Dataset, int, int], Dataset | None] = lambda ds, k, v: ds,
        syntax: str = ExplicitVRLittleEndian,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        random = np.random.default_rng(len(name))
        for number in range(slices * volumes):
            volume, k = divmod(number, slices)
            plane = random.integers(1, 1000, shape)
            ds = image(number + 1, (-10.0, -20.0, 4.0 * k), plane)
            changed = change(ds, k, volume)
            if changed is not None:
                write(changed, folder / f"{number:03}.dcm", syntax)
        return folder

    return make


@pytest.fixture
def real_series() -> Path:
    """The folder of real DICOM series; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the series of {SHARED}")
    return SHARED
