"""A NIfTI file written slice by slice: header first, voxels in file order, whole or not at all."""

import contextlib
import math
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from poan_runtime.engines.cores import usable_cores
from poan_runtime.errors import PoanError
from poan_runtime.files import WholeFile, temporary_file, writing
from poan_runtime.geometry import Geometry
from poan_runtime.images.nifti.gzip import GzipWriter
from poan_runtime.images.nifti.header import ScanHeader, parse_dtype, upscaled_header
from poan_runtime.images.source import Slab
from poan_runtime.images.stored import stored_as, to_stored

ASSEMBLY_BYTES = 1 << 23
MOST_SATURATED = 0.01
"""Share of the voxels that a type named by the user may fail to hold."""
MOST_THREADS = 8
"""Threads that compress: eight keep up with any engine, and each holds 2 MiB of blocks."""


class NiftiSink:
    """A `Sink` that writes a .nii or .nii.gz file with the header of the input, made finer.

    Across the third axis slabs are in file order already; otherwise they wait in a nameless
    temporary file in ``scratch`` until the volume is complete.
    """

    def __init__(
        self,
        target: Path,
        header: ScanHeader,
        *,
        note: str,
        dtype: str | None = None,
        saturate: bool = True,
        scratch: Path | None = None,
        threads: int | None = None,
    ) -> None:
        """``dtype`` None keeps the input's type; ``note`` goes into the description if it fits.

        Without ``saturate``, a ``dtype`` that fails to hold over 1 % of the voxels is refused as
        soon as that shows.
        """
        wanted = None if dtype is None else parse_dtype(dtype, header)
        self.stored = stored_as(header.dtype, header.slope, header.inter, wanted)
        self.saturated = 0
        self._most_saturated = 1.0 if saturate or dtype is None else MOST_SATURATED
        self._header = header
        self._note = note
        self._scratch = scratch
        self._threads = min(threads or MOST_THREADS, usable_cores(), MOST_THREADS)
        self._file = WholeFile(target)
        self._slices = 0
        self._waiting: BinaryIO | None = None
        self._gzip: GzipWriter | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """See `Sink.warnings`."""
        if not self.saturated:
            return ()
        return (f"{self.saturated} voxels do not fit into {self._type()}; cut to its ends",)

    def _type(self) -> str:
        dtype = self.stored.dtype
        if dtype.kind == "f":
            return dtype.name
        return f"{dtype.name} ({np.iinfo(dtype).min} to {np.iinfo(dtype).max})"

    def _refuse_saturation(self) -> None:
        """Raises PoanError once more voxels were cut than may be."""
        if self.saturated > self._most_saturated * math.prod(self._fine_shape):
            raise PoanError(
                f"--dtype: over {self._most_saturated:.0%} of the voxels do not fit into "
                f"{self._type()}; name a wider type, or --saturate to cut them to its ends"
            )

    def begin(self, geometry: Geometry) -> None:
        """See `Sink.begin`."""
        prefix = upscaled_header(
            self._header, geometry, self.stored, note=self._note, path=self._file.target
        )
        self._axis, self._shape = geometry.axis, geometry.fine_spatial
        self._fine_shape = geometry.fine_shape
        self._file.open()
        if self._file.target.name.endswith(".gz"):
            self._gzip = GzipWriter(self._file, threads=self._threads)
        self._append(prefix)

    def write(self, volume: int, start: int, fine: Slab) -> None:
        """See `Sink.write`."""
        stored = self.stored
        values, saturated = to_stored(fine, stored.dtype, stored.slope, stored.inter)
        self.saturated += saturated
        if saturated:
            self._refuse_saturation()
        data = _bytes(values.swapaxes(1, 2))  # (n, w, h)
        if self._axis == 2:
            self._append(data)
            return
        with writing(self._scratch):
            self._waiting = self._waiting or temporary_file(self._scratch)
            self._waiting.write(data)
        self._slices += len(fine)
        if self._slices == self._shape[self._axis]:
            self._assemble()

    def finish(self, remark: str | None = None) -> None:
        """See `Sink.finish`; the header has no room for a remark."""
        if self._gzip is not None:
            self._gzip.close()
        self._file.complete()

    def close(self) -> None:
        """See `Sink.close`."""
        self._file.abandon()
        if self._gzip is not None:
            self._gzip.abandon()
        if self._waiting is not None:
            with contextlib.suppress(OSError):  # a full disk refuses once more what was buffered
                self._waiting.close()

    def _append(self, data: bytes | memoryview) -> None:
        (self._gzip or self._file).write(data)

    def _assemble(self) -> None:
        """Read the waiting slices plane by plane of the third axis and append them."""
        assert self._waiting is not None
        slices, height = self._shape[self._axis], self._shape[1 - self._axis]
        depth = self._shape[2]
        item = self.stored.dtype.itemsize
        planes = max(1, ASSEMBLY_BYTES // (slices * height * item))
        for z in range(0, depth, planes):
            count = min(planes, depth - z)
            block = np.empty((slices, count, height), self.stored.dtype)
            with writing(self._scratch):
                for index in range(slices):
                    self._waiting.seek((index * depth + z) * height * item)
                    self._waiting.readinto(_bytes(block[index]))  # type: ignore[attr-defined]
            # (slice, z, h) -> file order (z, y, x): the slices are x (axis 0) or y (axis 1)
            ordered = block.transpose((1, 2, 0) if self._axis == 0 else (1, 0, 2))
            self._append(_bytes(ordered))
        self._slices = 0
        self._waiting.seek(0)


def _bytes(array: NDArray[Any]) -> memoryview:
    """The array's bytes in C order, without a copy where they lie so already."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
