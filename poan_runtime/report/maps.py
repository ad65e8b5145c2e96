"""Scans beside the result: what the network changed of the measurement, and how sure it is."""

from collections.abc import Callable

import numpy as np

from poan_runtime.geometry import Affine, Geometry, fine_to_coarse
from poan_runtime.images.source import Sink, Slab
from poan_runtime.super_resolve import Pair

Found = tuple[Geometry, Slab]


class MapFile:
    """A `poan_runtime.super_resolve.Consumer` that writes to a sink, values in the scan's unit.

    ``of`` gives a slab and where it lies, or None where there is nothing to write. `finish` lets
    the file appear, `close` gives up what is not finished.
    """

    def __init__(self, sink: Sink, of: Callable[[Geometry, Pair], Found | None]) -> None:
        self._sink, self._of = sink, of
        self._begun = False

    def __call__(self, geometry: Geometry, pair: Pair) -> None:
        """Take one slab."""
        found = self._of(geometry, pair)
        if found is None:
            return
        lies, slab = found
        if not self._begun:
            self._sink.begin(lies)
            self._begun = True
        self._sink.write(pair.volume, pair.start, slab)

    def finish(self) -> bool:
        """Let the map appear; False where there was nothing to write."""
        if self._begun:
            self._sink.finish()
        return self._begun

    def close(self) -> None:
        """Give up a map that is not finished."""
        self._sink.close()


def changed(geometry: Geometry, pair: Pair) -> Found | None:
    """LR - down(SR) on the voxels that the network saw: positive where SR holds less than LR."""
    if pair.changed is None:
        return None
    coarse = np.linalg.inv(fine_to_coarse(geometry.scale, geometry.axis, geometry.grid))
    return _as_it_is(geometry, geometry.fine_to_stored @ coarse), pair.changed


def uncertainty(geometry: Geometry, pair: Pair) -> Found | None:
    """The standard deviation over eight flips and rotations, on the voxels of the result."""
    return None if pair.spread is None else (geometry, pair.spread)


def _as_it_is(geometry: Geometry, lr_to_stored: Affine) -> Geometry:
    """The geometry of a file of the network's LR voxels."""
    return Geometry.derive(
        geometry.shape,
        geometry.affine,
        scale=1,
        grid="centre",
        axis=geometry.axis,
        lr_to_stored=lr_to_stored,
    )
