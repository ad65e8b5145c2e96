"""Reading a whole volume for training."""

from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from poan_runtime.errors import PoanError


def read_array(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    image = nibabel.load(path)
    if len(image.shape) != 3:
        raise PoanError(f"{path}: expected a 3D volume, got shape {image.shape}")
    return np.asarray(image.dataobj, dtype=np.float32), image.affine
