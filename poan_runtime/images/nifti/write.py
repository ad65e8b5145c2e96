"""Outputs that appear whole or not at all, and the voxels written slice by slice."""

import contextlib
import os
import secrets
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from poan_runtime.errors import PoanError
from poan_runtime.images.nifti.gzip import GzipWriter
from poan_runtime.images.nifti.read import temporary_file, writing

ASSEMBLY_BYTES = 1 << 23


class WholeFile:
    """A file that gets its name only once it is complete.

    A context manager. Bytes go to ``.NAME.RANDOM.poan-partial`` beside the target, which is
    flushed to disk and renamed at the end, or removed after an error. A killed process leaves
    that file, never one with the target's name.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        name = f".{target.name}.{secrets.token_hex(4)}.poan-partial"
        self._partial = target.with_name(name)
        self._file: BinaryIO

    def __enter__(self) -> "WholeFile":
        if self.target.is_dir():
            raise PoanError(f"{self.target}: expected a file name, got a folder")
        with self._refusals():
            self._file = self._partial.open("xb")
        return self

    def write(self, data: bytes) -> int:
        """Append; what the operating system refuses (a full disk) is a PoanError."""
        with self._refusals():
            return self._file.write(data)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._complete()
        finally:
            with contextlib.suppress(OSError):
                self._file.close()
            self._partial.unlink(missing_ok=True)

    def _complete(self) -> None:
        with self._refusals():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._partial.replace(self.target)
            folder = os.open(self.target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    @contextlib.contextmanager
    def _refusals(self) -> Any:
        try:
            yield
        except OSError as error:
            raise PoanError(f"{self.target}: cannot be written: {error.strerror}") from None


class VolumeWriter:
    """Writes volumes of real values, slab by slab, as the voxels of a NIfTI file.

    A context manager. Slabs (n, h, w) come in order across ``axis`` until ``shape`` is full,
    once for each of the ``volumes``. Across the third axis they are in file order already;
    otherwise they wait in a nameless temporary file until the volume is complete.
    """

    def __init__(
        self,
        target: Path,
        prefix: bytes,
        *,
        shape: tuple[int, int, int],
        axis: int,
        dtype: np.dtype[Any],
        slope: float = 1.0,
        inter: float = 0.0,
        scratch: Path | None = None,
        threads: int = 2,
    ) -> None:
        self.saturated = 0
        self._file = WholeFile(target)
        self._prefix = prefix
        self._shape = shape
        self._axis = axis
        self._dtype = dtype
        self._slope = slope
        self._inter = inter
        self._scratch = scratch
        self._threads = threads
        self._slices = 0
        self._waiting: BinaryIO | None = None
        self._gzip: GzipWriter | None = None

    def __enter__(self) -> "VolumeWriter":
        self._file.__enter__()
        try:
            if self._file.target.name.endswith(".gz"):
                self._gzip = GzipWriter(self._file, threads=self._threads)
            self._append(self._prefix)
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def write(self, slab: NDArray[np.float32]) -> None:
        """The next slices, real values, (n, h, w)."""
        stored, saturated = to_stored(slab, self._dtype, self._slope, self._inter)
        self.saturated += saturated
        data = _bytes(stored.swapaxes(1, 2))  # (n, w, h)
        if self._axis == 2:
            self._append(data)
            return
        with writing(self._scratch):
            self._waiting = self._waiting or temporary_file(self._scratch)
            self._waiting.write(data)
        self._slices += len(slab)
        if self._slices == self._shape[self._axis]:
            self._assemble()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self._gzip is not None and kind is None:
                self._gzip.close()
        except BaseException as failure:
            self._file.__exit__(type(failure), failure, None)
            raise
        else:
            self._file.__exit__(kind, error, traceback)
        finally:
            if self._gzip is not None:
                self._gzip.abandon()
            if self._waiting is not None:
                self._waiting.close()

    def _append(self, data: bytes | memoryview) -> None:
        sink = self._gzip or self._file
        sink.write(data)  # type: ignore[arg-type]

    def _assemble(self) -> None:
        """Read the waiting slices plane by plane of the third axis and append them."""
        assert self._waiting is not None
        slices, height = self._shape[self._axis], self._shape[1 - self._axis]
        depth = self._shape[2]
        item = self._dtype.itemsize
        planes = max(1, ASSEMBLY_BYTES // (slices * height * item))
        for z in range(0, depth, planes):
            count = min(planes, depth - z)
            block = np.empty((slices, count, height), self._dtype)
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


def to_stored(
    real: NDArray[np.float32], dtype: np.dtype[Any], slope: float, inter: float
) -> tuple[NDArray[Any], int]:
    """Real values as stored ones, and how many of them the type could not hold.

    Integers are rounded to nearest (ties to even) and saturate at the ends of the type.

    >>> stored, saturated = to_stored(np.float32([-3, 1.6, 300]), np.dtype("uint8"), 1.0, 0.0)
    >>> stored.tolist(), saturated
    ([0, 2, 255], 2)
    """
    unscaled = (slope, inter) == (1.0, 0.0)
    if dtype.kind == "f":
        values = real if unscaled else (real.astype(np.float64) - inter) / slope
        return values.astype(dtype), 0
    if unscaled and dtype.itemsize <= 2:
        values = np.rint(real)
    else:
        values = np.rint((real.astype(np.float64) - inter) / slope)
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    saturated = 0
    if values.size and (values.min() < least or values.max() > most):
        saturated = int(np.count_nonzero((values < least) | (values > most)))
        largest = values.dtype.type(most)
        if int(largest) > most:  # 2**63 - 1 rounds up in float64
            largest = np.nextafter(largest, values.dtype.type(0))
        np.clip(values, values.dtype.type(least), largest, out=values)
    return values.astype(dtype), saturated
