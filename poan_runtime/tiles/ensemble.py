"""Geometric self-ensemble: the mean over the eight flips and rotations of a tile (POAN+)."""

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
    no answer at the tile's last border, the mean is over the others.
    """

    def __init__(self, backend: Backend, scale: int, grid: Grid) -> None:
        self._backend = backend
        self._shift = scale - 1 if grid == "kspace" else 0
        self.fills_batches = backend.fills_batches

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Backend.run`."""
        total = self._backend.run(batch).copy()
        height, width = total.shape[2:]
        count = np.ones((height, width), np.float32)
        for transpose, rows, columns in TRANSFORMS[1:]:
            fine = self._backend.run(_forward(batch, transpose, rows, columns))
            fine = _backward(fine, transpose, rows, columns)
            up, left = self._shift * rows, self._shift * columns
            total[:, :, : height - up, : width - left] += fine[:, :, up:, left:]
            count[: height - up, : width - left] += 1
        return total / count

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
