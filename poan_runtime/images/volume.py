"""A volume in memory, and how one is read from a file."""

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from poan_runtime.geometry import Affine, spatial_shape
from poan_runtime.images.formats import open_source


@dataclasses.dataclass(frozen=True, kw_only=True)
class Volume:
    """A volume in memory: ``data`` in voxel order, real values; ``affine`` to RAS+ mm, (4, 4).

    ``data`` has 2 to 7 axes; the fourth and later ones count volumes.

    >>> Volume(data=np.zeros((4, 5, 2), np.float32), affine=np.eye(4)).data.shape
    (4, 5, 2)
    """

    data: NDArray[np.float32]
    affine: Affine


def read_volume(path: str | Path, volume: int = 0) -> Volume:
    """One whole 3D volume (or 2D image) as float32 real values, not-finite ones as they are.

    ``volume`` counts along the fourth and later axes. Raises PoanError on a file that is not
    there, not readable, or damaged.

    Example::

        scan = poan_runtime.read_volume("scan.nii.gz")
        print(scan.data.shape, scan.affine)
    """
    with contextlib.closing(open_source(path)) as source:
        depth = spatial_shape(source.shape)[2]
        data = source.read_slices(2, 0, depth, volume).transpose(1, 2, 0)  # (z, x, y) -> (x, y, z)
        shape = source.shape[:3]
        return Volume(data=np.asfortranarray(data).reshape(shape), affine=source.affine)
