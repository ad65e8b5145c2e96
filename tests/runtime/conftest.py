"""A zero-filled scan, and a model that was trained for what scanners measure."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from poan_runtime.signal.kspace import zero_fill
from tests.runtime.filled import AFFINE, FILLED, NATIVE, SCANNER, SLICES


@pytest.fixture(scope="module")
def filled() -> np.ndarray:
    """White noise measured on 64x80, zero-filled to 96x80 along rows: (96, 80, 5), positive."""
    measured = 500 + np.random.default_rng(3).normal(0, 20, (SLICES, *NATIVE))
    return np.moveaxis(zero_fill(measured.astype(np.float32), FILLED), 0, 2)


@pytest.fixture
def filled_scan(make_scan: Callable[..., Path], filled: np.ndarray) -> Path:
    return make_scan("scan.nii", dtype="<f4", affine=AFFINE, data=filled)


@pytest.fixture
def scanner_model(make_model: Callable[..., Path]) -> Path:
    return make_model(degradation=SCANNER)
