"""Tiles of air: where no voxel shows more than noise, a tile is interpolated and not run."""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Tiles = NDArray[np.float32]


class Air(NamedTuple):
    """Up to where the voxels of a tile count as air, in the scan's unit."""

    most: float
    """The largest magnitude that a voxel of air has."""
    mean: float = math.inf
    """The largest mean magnitude: faint tissue lifts it, though noise hides each voxel of it."""


NO_AIR = Air(most=-1.0)
"""Every tile runs, air or not."""


def which_are_air(tiles: Tiles, unit: float, air: Air) -> NDArray[np.bool_]:
    """Which of the tiles (n, tile, tile), divided by ``unit``, are air: (n,)."""
    sizes = np.abs(tiles)
    dark: NDArray[np.bool_] = sizes.max(axis=(1, 2)) <= air.most / unit
    dark &= sizes.mean(axis=(1, 2)) <= air.mean / unit
    return dark


def interpolated(tile: Tiles, scale: int) -> Tiles:
    """A tile (h, h) made ``scale`` times finer by bicubic convolution, on the ``centre`` grid."""
    matrix = bicubic(len(tile), scale)
    return np.asarray(matrix @ tile @ matrix.T)


@lru_cache(maxsize=16)
def bicubic(n: int, scale: int) -> Tiles:
    """Matrix (scale * n, n) of Keys' bicubic convolution (a = -1/2, 1981); its rows sum to one.

    Fine sample k lies at ``(k + 1/2) / scale - 1/2``; past an end stands the last sample.
    """
    place: NDArray[np.float64] = (np.arange(scale * n) + 0.5) / scale - 0.5
    tap = np.floor(place)[:, None] + np.arange(-1, 3)  # (scale * n, 4)
    d: NDArray[np.float64] = np.abs(place[:, None] - tap)
    near = 1.5 * d**3 - 2.5 * d**2 + 1
    far = -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    matrix = np.zeros((scale * n, n))
    index = np.clip(tap.astype(np.intp), 0, n - 1)
    np.add.at(matrix, (np.arange(scale * n)[:, None], index), np.where(d <= 1, near, far))
    return matrix.astype(np.float32)
