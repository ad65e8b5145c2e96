"""What a format must be to take part: a `Source` of LR slices, a `Sink` of SR slices.

Both are written protocols. ``tests/runtime/images/conformance.py`` holds what every
implementation must do; the test of each one calls it.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from poan_runtime.errors import PoanError
from poan_runtime.geometry import Affine, Geometry, spatial_shape
from poan_runtime.intensity import StreamedUnit, streamed_intensity_unit

Slab = NDArray[np.float32]

READ_BYTES = 1 << 22
"""Bytes of float32 that are read at once to find the intensity unit."""


class Source(Protocol):
    """Volumes of one shape, open, read slice by slice in bounded memory.

    An implementation checks the whole input when it is opened: what is broken is a PoanError
    before any work is done. `read_slices` may be called from another thread than the one that
    opened it, by one thread at a time.

    Example: the slices of an array, of which `ArraySource` is a source::

        import numpy as np
        from poan_runtime.images.source import ArraySource

        source = ArraySource(np.zeros((20, 18, 5), np.float32), np.diag([1.0, 1.0, 4.0, 1.0]))
        print(source.read_slices(axis=2, start=0, stop=3).shape)
        source.close()
    """

    @property
    def path(self) -> Path | None:
        """What the user named, for messages and the report; None for an array."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """2 to 7 extents in voxel order; the fourth and later ones count volumes."""
        ...

    @property
    def affine(self) -> Affine:
        """Voxel index to RAS+ mm, (4, 4) float64."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type that voxels are stored in, which the output keeps unless told otherwise."""
        ...

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is odd about the input but harmless, one line each."""
        ...

    def read_slices(self, axis: int, start: int, stop: int, volume: int = 0) -> Slab:
        """Slices ``start`` to ``stop`` across ``axis``, (stop - start, h, w), real values.

        Rows run along the first of the other two voxel axes, columns along the second. The
        array is the caller's. Values that float32 cannot hold are infinite; NaN stays NaN.
        ``volume`` counts along the fourth and later axes, the fourth fastest. Raises PoanError
        where the file ends or changes under the reader.
        """
        ...

    def sha256(self) -> dict[str, str]:
        """SHA-256 of the files behind it, by name; only a report asks for it.

        Raises PoanError where they cannot be read to their end.
        """
        ...

    def close(self) -> None:
        """Give back files and memory; a second call does nothing."""
        ...


class Sink(Protocol):
    """Where SR slices go. The output appears whole or not at all.

    Order of calls: `begin` once, `write` for each slab in order (volume by volume, slices
    ascending), `finish` once, `close`. A sink that needs the source's headers gets the source
    when it is made. `write` may come from another thread, one at a time. Each raises PoanError on
    a shape that the format cannot hold and on values that do not fit.

    Example: a scan made finer into an array in memory::

        from poan_runtime.images.source import ArraySink

        sink = ArraySink()
        poan_runtime.upscale_file("scan.nii.gz", sink, "t2_x2")
        print(sink.data.shape)
    """

    def begin(self, geometry: Geometry) -> None:
        """Learn the output's shape, affine and slice axis; refuse what it cannot hold."""
        ...

    def write(self, volume: int, start: int, fine: Slab) -> None:
        """Slices from ``start`` on, (n, s*h, s*w), real values, finite."""
        ...

    def finish(self, remark: str | None = None) -> None:
        """Let the output appear.

        ``remark`` is one sentence on the whole run (how far SR departs from what was measured),
        which a format that has room for it states in the output.
        """
        ...

    def close(self) -> None:
        """Give up what is not finished, without a trace; after `finish` nothing is left to do."""
        ...

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the output could not hold (saturated voxels), one line each."""
        ...


class ArraySource:
    """A `Source` over an array in memory; voxel order, 2 to 7 axes, real values."""

    warnings: tuple[str, ...] = ()

    def __init__(self, data: NDArray[Any], affine: Affine) -> None:
        self.path: Path | None = None
        self.shape: tuple[int, ...] = data.shape
        if not 2 <= len(self.shape) <= 7 or min(self.shape) < 1:
            raise PoanError(f"expected a volume of 2 to 7 dimensions, got shape {self.shape}")
        self.affine = np.asarray(affine, np.float64)
        self.dtype: np.dtype[Any] = np.dtype(np.float32)
        spatial = spatial_shape(self.shape)
        self._data = np.asarray(data, np.float32).reshape(*spatial, -1, order="F")

    def read_slices(self, axis: int, start: int, stop: int, volume: int = 0) -> Slab:
        """See `Source.read_slices`."""
        return np.array(np.moveaxis(self._data[..., volume], axis, 0)[start:stop], order="C")

    def sha256(self) -> dict[str, str]:
        """An array has no files."""
        return {}

    def close(self) -> None:
        """Nothing is held."""


class ArraySink:
    """A `Sink` into an array in memory: ``data`` of the fine shape, once begun."""

    warnings: tuple[str, ...] = ()

    def begin(self, geometry: Geometry) -> None:
        """See `Sink.begin`."""
        self._axis = geometry.axis
        self._shape = geometry.fine_shape
        extents = (*geometry.fine_spatial, geometry.volumes)
        self._out = np.empty(extents, np.float32, order="F")

    def write(self, volume: int, start: int, fine: Slab) -> None:
        """See `Sink.write`."""
        slices = np.moveaxis(self._out[..., volume], self._axis, 0)
        slices[start : start + len(fine)] = fine

    def finish(self, remark: str | None = None) -> None:
        """See `Sink.finish`; an array has no room for a remark."""
        self.data: Slab = self._out.reshape(self._shape, order="F")

    def close(self) -> None:
        """Nothing is held."""


def intensity_of(source: Source, volume: int, percentile: float, along: int = 2) -> StreamedUnit:
    """What a volume's intensities are divided by: see `poan_runtime.intensity`.

    Read slab by slab ``along`` an axis; the third is the order of a NIfTI file.
    """
    extents = spatial_shape(source.shape)
    count = extents[along]
    planes = max(1, READ_BYTES * count // (4 * math.prod(extents)))

    def parts() -> Iterator[Slab]:
        for start in range(0, count, planes):
            yield source.read_slices(along, start, min(start + planes, count), volume)

    return streamed_intensity_unit(parts, percentile)
