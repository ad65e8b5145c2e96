"""A zero-filled scan seen twice: on its native matrix, and on the matrix as its scanner gave it.

The network was trained on the native matrix, and the farther a scan was filled the better is that
answer. Near it the two are of one worth: which is the better depends on how soft the anatomy is
along the axis that was filled, which LR alone does not tell. They err at different places, as
two samplings of the same picture do, so their mean is better than the better of them.
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from poan_runtime.as_measured import resampled
from poan_runtime.geometry import Geometry
from poan_runtime.images.source import Slab
from poan_runtime.signal.native import Native
from poan_runtime.tiles.air import Air
from poan_runtime.tiles.layout import Layout
from poan_runtime.tiles.run import SliceRunner, Timings, Work

EVEN_AT = 0.8
"""Cutoff at and above which both answers count alike. Below it the native one's share grows as the
cutoff falls. Over 126 cases made of 7 volumes (those of `benchmarks/native.py`) the best shares are
0.76, 0.69 and 0.60 in the mean at 0.6, 0.7 and 0.8, and lower for the volumes where the native
matrix gains least, so this keeps 0.1 below."""
ALONE_BELOW = 0.5
"""Cutoff below which the native matrix is run alone: the other costs four times as much for a
fifth of the answer."""


def native_share(native: Native) -> float:
    """Share of the native matrix's answer in the mean, 0.5 to 1; by the smallest cutoff.

    1 where nothing was zero-filled.
    """
    cutoff = min((c for c in native.cutoffs if c is not None), default=0.0)
    if cutoff < ALONE_BELOW:
        return 1.0
    return 0.5 + max(0.0, EVEN_AT - cutoff)


def from_which_matrix(native: Native, share: float, geometry: Geometry) -> str:
    """For people, of a scan that was zero-filled: what the result was made from, and its size."""
    said = "super-resolved from there"
    if share < 1:
        lines = "x".join(map(str, native.native))
        said = (
            f"the result is the mean of two runs: {share:.0%} from {lines}, "
            f"{1 - share:.0%} from the stored matrix"
        )
    if geometry.is_filled_up:
        return f"{said}, then filled up to the input's matrix"
    rows, columns = (geometry.scale * extent for extent in native.matrix)
    return f"{said}; --like-input gives {rows}x{columns}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BothMatrices:
    """Runs slabs on the native matrix and on the stored one, and gives the mean of both.

    It stands for a `SliceRunner` in `run_volume`. Slabs are stored ones; LR and the grid of the
    answers are native.
    """

    native: SliceRunner
    stored: SliceRunner
    """Its layout is that of the stored matrix."""
    share: float
    """Of the native matrix's answer."""
    to_native: Callable[[Slab], Slab]
    """Stored slices (n, H, W) brought to the native matrix."""

    @classmethod
    def of(
        cls, native: SliceRunner, wide: Layout, share: float, to_native: Callable[[Slab], Slab]
    ) -> "BothMatrices":
        """Both of a runner on the native matrix, with a layout of the stored one.

        Slabs have as many slices as the larger matrix allows, so that memory stays flat.
        """
        slab = min(native.layout.slab, wide.slab)
        runners = (
            dataclasses.replace(
                native,
                layout=dataclasses.replace(layout, slab=slab),
                answers={},
                promised=set(),
            )
            for layout in (native.layout, wide)
        )
        return cls(native=next(runners), stored=next(runners), share=share, to_native=to_native)

    @property
    def layout(self) -> Layout:
        """That of the native matrix."""
        return self.native.layout

    @property
    def timings(self) -> Timings:
        """Those of both: tiles of both matrices are counted."""
        return self.native.timings

    def work(self, start: int, slab: Slab, unit: float, air: Air) -> tuple[Work, Work]:
        """A stored slab made ready to run on both matrices."""
        lr = self.to_native(slab)
        native = self.native.work(start, lr, unit, air)
        return native, self.stored.work(start, slab, unit, air)

    def run_slabs(self, works: Iterator[tuple[Work, Work]]) -> Iterator[tuple[int, Slab, Slab]]:
        """(start, lr, finer) of each slab, as `SliceRunner.run_slabs`."""
        for on_native, on_stored in works:
            ((start, lr, fine),) = self.native.run_slabs(iter([on_native]))
            ((_, _, wide),) = self.stored.run_slabs(iter([on_stored]))
            with self.timings.time("blend"):
                yield start, lr, self._mean(fine, wide)

    def _mean(self, fine: Slab, wide: Slab) -> Slab:
        """Mean of answers (images, n, s*h, s*w), in place of the first; a spread stays above 0."""
        fine *= np.float32(self.share)
        fine += resampled(wide, fine.shape[-2:]) * np.float32(1 - self.share)
        np.maximum(fine[1:], 0, out=fine[1:])
        return fine
