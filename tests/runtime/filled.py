"""What the tests of zero-filled scans share: how the scan of `conftest.py` was measured."""

from typing import Any

import numpy as np

import poan_runtime

AFFINE = np.array([[0.6, 0.1, 0, -30], [-0.1, 0.6, 0, 5], [0, 0, 4.0, 7], [0, 0, 0, 1]])
NATIVE, FILLED, SLICES = (64, 80), (96, 80), 5
SCANNER = {"method": "scanner"}


def settings(**changes: Any) -> poan_runtime.Settings:
    """Those of slices across the third axis."""
    return poan_runtime.Settings(axis=2, **changes)
