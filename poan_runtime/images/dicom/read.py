"""A stack of DICOM frames as a `Source`: unpacked once, then read slice by slice.

Opening decodes every frame into a nameless temporary file, so that a broken one is found before
any work is done, compressed frames are decoded once, and memory holds one frame.
"""

import contextlib
import dataclasses
import hashlib
from collections import defaultdict
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from poan_runtime.errors import PoanError
from poan_runtime.files import file_sha256, temporary_file, writing
from poan_runtime.images.dicom.decode import decode
from poan_runtime.images.dicom.files import reading
from poan_runtime.images.dicom.frames import Frame
from poan_runtime.images.dicom.series import choose, find_series
from poan_runtime.images.dicom.stack import Stack
from poan_runtime.images.nifti.header import ScanHeader, plain_header
from poan_runtime.intensity import as_float32

LARGEST_UNDOUBTED = 1 << 30
MOST_PACKED = 1000
"""Bytes of pixels from a byte of file. Lossless MR reaches 2 to 3, black images of 512x512 200."""


class DicomSource:
    """An open stack; a context manager.

    Real values are ``stored * slope + inter``, slope and intercept rounded to float32 as NIfTI
    holds them. ``dtype`` is what dcm2niix would store: int16 where the stored bits fit (uint8 too
    is int16 here), else uint16, and float32 where each slice has a scale of its own.
    """

    def __init__(self, stack: Stack, path: Path, scratch: Path | None = None) -> None:
        self.path = path
        self.stack = stack
        self.shape = stack.shape
        self.affine = stack.affine
        frames = [frame for volume in stack.frames for frame in volume]
        self._scales = np.array([(frame.slope, frame.inter) for frame in frames], np.float32)
        self._shared_scale = bool((self._scales == self._scales[0]).all())
        self._stored = np.dtype("<i2" if stack.first.signed else "<u2")
        self._file = temporary_file(scratch, _unpacked_bytes(stack.key, frames))
        try:
            self._unpack(frames, scratch)
        except BaseException:
            with contextlib.suppress(OSError):  # a full disk refuses once more what was buffered
                self._file.close()
            raise
        fits = stack.first.signed or stack.first.bits < 16
        whole = np.dtype(np.int16 if fits else np.uint16)
        self.dtype = whole if self._shared_scale else np.dtype(np.float32)
        self.warnings = (*stack.warnings, *self._remarks())

    @property
    def description(self) -> str:
        """What the scanner calls the series."""
        return self.stack.first.description

    @property
    def slope(self) -> float:
        """Real values per stored unit; 1 where each slice has its own."""
        return float(self._scales[0, 0]) if self._shared_scale else 1.0

    @property
    def inter(self) -> float:
        """Real value of stored 0."""
        return float(self._scales[0, 1]) if self._shared_scale else 0.0

    @property
    def header(self) -> ScanHeader:
        """What a NIfTI file of the same voxels would say."""
        made = plain_header(self.shape, self.dtype, self.affine, slope=self.slope, inter=self.inter)
        return dataclasses.replace(made, warnings=self.warnings)

    def sha256(self) -> dict[str, str]:
        """One digest over the files that hold the frames, by no name of theirs."""
        paths = sorted({frame.path for volume in self.stack.frames for frame in volume})
        total = hashlib.sha256()
        for path in paths:
            with reading(path), path.open("rb") as file:
                total.update(file_sha256(file))
        return {f"{len(paths)} DICOM files": total.hexdigest()}

    @property
    def native_matrix(self) -> tuple[int, int] | None:
        """(rows, columns) that were acquired over this field of view, if the header says."""
        return self.stack.first.native

    @property
    def native_shape(self) -> tuple[int, int, int] | None:
        """The same as extents along the three array axes."""
        if self.native_matrix is None:
            return None
        rows, columns = self.native_matrix
        acquired = (columns, rows, self.stack.extents[2])
        x, y, z = (acquired[axis] for axis in self.stack.turn.axes)
        return x, y, z

    @property
    def frame_axis(self) -> int | None:
        """The array axis across which the scanner's slices lie; None for a 3D acquisition."""
        return None if self.stack.first.volumetric else self.stack.turn.axes.index(2)

    def __enter__(self) -> "DicomSource":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back the temporary file."""
        self._file.close()

    def read_slices(self, axis: int, start: int, stop: int, volume: int = 0) -> NDArray[np.float32]:
        """Slices ``start`` to ``stop`` across ``axis``, (stop - start, h, w), real values.

        Rows run along the first in-plane axis, columns along the second.
        """
        turn, extents = self.stack.turn, self.stack.extents
        across = turn.axes[axis]
        if turn.flips[axis]:
            start, stop = extents[across] - stop, extents[across] - start
        part = self._block(across, start, stop, volume)  # (columns, rows up, slices)
        return np.ascontiguousarray(np.moveaxis(turn.to_array(part), axis, 0))

    def _block(self, across: int, start: int, stop: int, volume: int) -> NDArray[np.float32]:
        """What lies between two slices across a stack axis, in stack order."""
        x, y, z = self.stack.extents
        if across == 2:
            return np.stack([self._plane(volume, k).T for k in range(start, stop)], axis=2)
        shape = (stop - start, y, z) if across == 0 else (x, stop - start, z)
        block = np.empty(shape, np.float32)
        for k in range(z):
            plane = self._plane(volume, k).T  # (x, y)
            block[:, :, k] = plane[start:stop] if across == 0 else plane[:, start:stop]
        return block

    def _plane(self, volume: int, k: int) -> NDArray[np.float32]:
        """Real values of one plane, (y, x)."""
        x, y, z = self.stack.extents
        index = volume * z + k
        with writing(None):
            self._file.seek(index * x * y * self._stored.itemsize)
            data = self._file.read(x * y * self._stored.itemsize)
        stored = np.frombuffer(data, self._stored).reshape(y, x)
        slope, inter = (float(value) for value in self._scales[index])
        if (slope, inter) == (1.0, 0.0):
            return as_float32(stored)
        return as_float32(stored * slope + inter)

    def _unpack(self, frames: list[Frame], scratch: Path | None) -> None:
        """Decode every frame to its place in the file, rows flipped."""
        places: dict[Path, dict[int, int]] = defaultdict(dict)
        for place, frame in enumerate(frames):
            places[frame.path][frame.index] = place
        for path, wanted in places.items():
            planes = decode(path, sorted(wanted), self.stack.first)
            for index, plane in zip(sorted(wanted), planes, strict=True):
                with writing(scratch):
                    self._file.seek(wanted[index] * plane.size * self._stored.itemsize)
                    self._file.write(plane[::-1].astype(self._stored).tobytes())

    def _remarks(self) -> list[str]:
        first, remarks = self.stack.first, []
        if first.component != "magnitude":
            remarks.append(f"{first.component} image: the networks were trained on magnitudes")
        if first.inverted:
            remarks.append("MONOCHROME1: small values are bright; they are taken as stored")
        if first.by_poan:
            remarks.append("poan made this series; what is super-resolved is its result")
        if not self._shared_scale:
            remarks.append("slices have scales of their own; values are real ones")
        return remarks


def _unpacked_bytes(key: str, frames: list[Frame]) -> int:
    """What the frames take with 16 bits a pixel; PoanError if the files pack far too much."""
    size = sum(2 * frame.rows * frame.columns for frame in frames)
    if size > LARGEST_UNDOUBTED:
        paths = {frame.path for frame in frames}
        with reading(frames[0].path):
            packed = sum(path.stat().st_size for path in paths)
        if size > MOST_PACKED * packed:
            raise PoanError(
                f"series {key}: {packed >> 10} KiB of files unpack to {size >> 20} MiB; no image "
                "does that"
            )
    return size


def open_dicom(
    path: str | Path, series: str | None = None, scratch: Path | None = None
) -> DicomSource:
    """Open one series of a DICOM file or folder as a `DicomSource`."""
    path = Path(path)
    if not path.exists():
        raise PoanError(f"{path}: no such file")
    found, refused = find_series(path)
    chosen = choose(found, series, path)
    others = [other.key for other in found if other is not chosen]
    source = DicomSource(chosen.stack(), path, scratch)
    left = [f"series {', '.join(others)}: not asked for"] if others and series is None else []
    source.warnings = (*refused, *left, *source.warnings)
    return source
