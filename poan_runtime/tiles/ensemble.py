"""Geometric self-ensemble: mean and spread over the eight flips and rotations of a tile (POAN+)."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from poan_runtime.engines.backend import Backend
from poan_runtime.geometry import Grid

TRANSFORMS = [
    (transpose, rows, columns)
    for transpose in (False, True)
    for rows in (False, True)
    for columns in (False, True)
]
"""Whether to transpose, flip rows, flip columns; the first changes nothing."""


class SelfEnsemble(Backend):
    """A backend that runs another one eight times on square tiles and averages.

    On the grid ``kspace`` the first samples of LR and HR coincide, so that a flip moves the
    finer grid by ``scale - 1`` HR voxels. Those answers are moved back, and where that leaves
    no answer at the tile's last border, the mean is over the others. With ``spread`` an answer
    holds two images, (N, 2, s*h, s*w): that mean and the standard deviation about it.
    """

    def __init__(self, backend: Backend, scale: int, grid: Grid, *, spread: bool = False) -> None:
        self._backend = backend
        self.images = 2 if spread else 1
        self._shift = scale - 1 if grid == "kspace" else 0
        self.fills_batches = backend.fills_batches

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Backend.run`."""
        first = self._backend.run(batch)
        total = first.copy()
        height, width = total.shape[2:]
        count = np.ones((height, width), np.float32)
        off, squares = np.zeros((2, *total.shape), np.float32)  # of the others less the first
        for transpose, rows, columns in TRANSFORMS[1:]:
            fine = self._backend.run(_forward(batch, transpose, rows, columns))
            fine = _backward(fine, transpose, rows, columns)
            up, left = self._shift * rows, self._shift * columns
            inner = np.s_[..., : height - up, : width - left]
            total[inner] += fine[:, :, up:, left:]
            count[inner] += 1
            if self.images == 2:
                apart = fine[:, :, up:, left:] - first[inner]
                off[inner] += apart
                squares[inner] += apart**2
        mean = total / count
        if self.images == 1:
            return mean
        variance = np.maximum(squares / count - (off / count) ** 2, 0)
        return np.concatenate([mean, np.sqrt(variance)], axis=1)

    def close(self) -> None:
        """Close the backend."""
        self._backend.close()


def _forward(
    batch: NDArray[np.float32], transpose: bool, rows: bool, columns: bool
) -> NDArray[np.float32]:
    """Flip rows and columns as told, then transpose."""
    flipped = batch[:, :, :: -1 if rows else 1, :: -1 if columns else 1]
    return np.ascontiguousarray(flipped.swapaxes(2, 3) if transpose else flipped)


def _backward(
    fine: NDArray[np.float32], transpose: bool, rows: bool, columns: bool
) -> NDArray[np.float32]:
    """Undo `_forward`."""
    straight = fine.swapaxes(2, 3) if transpose else fine
    return straight[:, :, :: -1 if rows else 1, :: -1 if columns else 1]


LOWEST, PER_DECADE, DECADES = 1e-6, 100, 8
"""Bins of `Spread`: their edges are 2.3 % apart, from a millionth of the intensity unit upwards."""
TISSUE = 0.05
"""Voxels above this share of the intensity unit count as tissue."""


@dataclasses.dataclass
class Spread:
    """Mean and percentiles of the standard deviation in tissue, added up slab by slab."""

    total: float = 0.0
    count: int = 0
    unit: float = 1.0
    """What the bins are shares of: the first volume's intensity unit."""
    bins: NDArray[np.int64] = dataclasses.field(
        default_factory=lambda: np.zeros(PER_DECADE * DECADES, np.int64)
    )

    def add(self, spread: NDArray[np.float32], sr: NDArray[np.float32], unit: float) -> None:
        """Take in a slab's standard deviations and the SR that they belong to."""
        if not self.count:
            self.unit = unit
        inside = spread[sr > TISSUE * unit].astype(np.float64)
        self.total += float(inside.sum())
        self.count += inside.size
        decades = np.log10(np.maximum(inside / self.unit, LOWEST) / LOWEST)
        places = np.minimum((decades * PER_DECADE).astype(np.intp), len(self.bins) - 1)
        self.bins += np.bincount(places, minlength=len(self.bins))

    def __str__(self) -> str:
        """One line for the user."""
        return (
            f"standard deviation over 8 flips and rotations, in tissue: mean {self.mean:.4g}, "
            f"95th percentile {self.percentile(95):.4g}"
        )

    @property
    def mean(self) -> float:
        """In the scan's unit; 0 without tissue."""
        return self.total / self.count if self.count else 0.0

    def percentile(self, share: float) -> float:
        """Value that ``share`` percent stay below, to 2.3 %: the upper edge of its bin."""
        if not self.count:
            return 0.0
        place = int(np.searchsorted(np.cumsum(self.bins), share / 100 * self.count))
        return float(self.unit * LOWEST * 10 ** ((place + 1) / PER_DECADE))
