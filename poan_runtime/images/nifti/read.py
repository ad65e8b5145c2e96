"""A scan on disk, read slice by slice in bounded memory.

A compressed scan is unpacked once into a nameless temporary file, which checks its gzip
checksum before any work is done and vanishes with the process, however that ends. Reads use
a file position, not a memory map, so that pages of the file never count as ours.
"""

import contextlib
import dataclasses
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from poan_runtime import geometry
from poan_runtime.errors import PoanError
from poan_runtime.images.nifti import header as nifti_header
from poan_runtime.images.nifti.inflate import GZIP_MAGIC, LARGEST_RATIO, inflate
from poan_runtime.intensity import as_float32

READ_BYTES = 1 << 22
LONGEST_EXTENSION = 1 << 26


@dataclasses.dataclass(frozen=True, kw_only=True)
class Volume:
    """A volume in memory: ``data`` in voxel order, real values; ``affine`` to RAS+ mm."""

    data: NDArray[np.float32]
    affine: geometry.Affine


class Scan:
    """An open scan; a context manager. See `ScanHeader` for what the header says."""

    def __init__(
        self,
        path: Path,
        header: nifti_header.ScanHeader,
        voxels: BinaryIO,
        resources: contextlib.ExitStack,
    ) -> None:
        self.path = path
        self.header = header
        self._voxels = voxels
        self._resources = resources

    def __enter__(self) -> "Scan":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._resources.close()

    def sha256(self) -> dict[str, str]:
        """See `sha256_of_scan`."""
        return sha256_of_scan(self.path)

    def read_slices(self, axis: int, start: int, stop: int, volume: int = 0) -> NDArray[np.float32]:
        """Slices ``start`` to ``stop`` across ``axis``, (stop - start, h, w), real values.

        Rows run along the first in-plane axis, columns along the second. Values that float32
        cannot hold are infinite.
        """
        extents = self.header.volume_shape
        if axis == 2:
            stored = self._read_planes(volume, start, stop)  # (n, y, x)
            return self._real(stored.transpose(0, 2, 1))
        first, second = geometry.in_plane_axes(axis)
        out = np.empty((stop - start, extents[first], extents[second]), np.float32)
        planes = max(1, READ_BYTES // (extents[0] * extents[1] * self.header.dtype.itemsize))
        for z in range(0, extents[2], planes):
            stored = self._read_planes(volume, z, min(z + planes, extents[2])).T  # (x, y, z)
            part = stored[start:stop] if axis == 0 else stored[:, start:stop].swapaxes(0, 1)
            out[:, :, z : z + part.shape[2]] = self._real(part)
        return out

    def _read_planes(self, volume: int, start: int, stop: int) -> NDArray[Any]:
        """Stored values of planes across the third axis, (n, y, x)."""
        header = self.header
        x, y, z = header.volume_shape
        plane = x * y * header.dtype.itemsize
        with reading(self.path):
            self._voxels.seek(header.offset + (volume * z + start) * plane)
            data = self._voxels.read((stop - start) * plane)
        if len(data) != (stop - start) * plane:
            raise PoanError(f"{self.path}: the file was cut short while it was being read")
        return np.frombuffer(data, header.dtype).reshape(stop - start, y, x)

    def _real(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        slope, inter = self.header.slope, self.header.inter
        if (slope, inter) == (1.0, 0.0):
            return np.ascontiguousarray(as_float32(stored))
        return np.ascontiguousarray(as_float32(stored * slope + inter))


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses about ``path`` into one line."""
    try:
        yield
    except OSError as error:
        raise PoanError(f"{path}: cannot be read: {error.strerror}") from None


def open_scan(path: str | Path, scratch: Path | None = None) -> Scan:
    """Open and check a NIfTI-1, NIfTI-2 or Analyze file, or either file of a pair.

    A compressed one is unpacked into ``scratch`` (the system's temporary folder if None).
    Compression is told by content, not by name.
    """
    path = Path(path)
    header_path, voxel_path = scan_files(path)
    with contextlib.ExitStack() as stack:
        header = None if voxel_path == header_path else _detached_header(header_path)
        with reading(voxel_path):
            file: BinaryIO = stack.enter_context(voxel_path.open("rb"))
            magic = file.read(2)
            file.seek(0)
        if magic == GZIP_MAGIC:
            header, file = _unpack(file, voxel_path, header, scratch)
            stack.enter_context(file)
        elif header is None:
            with reading(path):
                header = _leading_header(file, path)
        with reading(voxel_path):
            got = file.seek(0, os.SEEK_END) - header.offset
        _check_size(voxel_path, header, got)
        return Scan(path, header, file, stack.pop_all())


def read_volume(path: str | Path, volume: int = 0) -> Volume:
    """One whole 3D volume (or 2D image) as float32 real values, not-finite ones as they are."""
    with open_scan(path) as scan:
        extent = scan.header.volume_shape[2]
        data = scan.read_slices(2, 0, extent, volume).transpose(1, 2, 0)  # (z, x, y) -> (x, y, z)
        shape = scan.header.shape[:3]
        return Volume(data=np.asfortranarray(data).reshape(shape), affine=scan.header.affine)


def sha256_of_scan(path: str | Path) -> dict[str, str]:
    """SHA-256 of each file that makes up the scan, by file name."""
    hashes = {}
    for part in dict.fromkeys(scan_files(Path(path))):
        with reading(part), part.open("rb") as file:
            hashes[part.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def scan_files(path: Path) -> tuple[Path, Path]:
    """Where header and voxels lie: the same file twice, or the two files of a pair."""
    if not path.exists():
        raise PoanError(f"{path}: no such file")
    if not path.is_file():
        raise PoanError(f"{path}: expected a NIfTI file, got a folder or a device")
    packed = ".gz" if path.name.lower().endswith(".gz") else ""
    stem = path.name[: len(path.name) - len(packed)]
    suffix = Path(stem).suffix
    if suffix.lower() not in (".hdr", ".img"):
        return path, path
    pair = {".hdr": ".img", ".img": ".hdr"}[suffix.lower()]
    pair = pair.upper() if suffix.isupper() else pair
    base = stem[: -len(suffix)]
    for name in (base + pair + packed, base + pair, base + pair + ".gz"):
        partner = path.with_name(name)
        if partner.is_file():
            return (path, partner) if suffix.lower() == ".hdr" else (partner, path)
    raise PoanError(f"{path}: expected {base}{pair} beside it, got no such file")


def _detached_header(path: Path) -> nifti_header.ScanHeader:
    with reading(path), path.open("rb") as file:
        content = file.read(LONGEST_EXTENSION)
        if content.startswith(GZIP_MAGIC):
            file.seek(0)
            content = b"".join(_first_bytes(inflate(file, path), LONGEST_EXTENSION))
    header = nifti_header.parse_header(content, path, detached=True)
    if header.analyze and path.with_name(f"{path.name.split('.')[0]}.mat").exists():
        remark = "SPM's .mat file beside it is not read; the geometry is the header's"
        header = dataclasses.replace(header, warnings=(*header.warnings, remark))
    extension = content[header.struct.sizeof_hdr :]
    if header.analyze or len(extension) < 4 or extension[0] == 0:
        return header
    return nifti_header.with_extension(header, extension)


def _first_bytes(chunks: Iterator[bytes], limit: int) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk[: max(limit, 0)]
        limit -= len(chunk)


def _leading_header(file: BinaryIO, path: Path) -> nifti_header.ScanHeader:
    """Header and extension at the start of an unpacked single file."""
    header = nifti_header.parse_header(file.read(nifti_header.LONGEST_HEADER), path, detached=False)
    size = header.struct.sizeof_hdr
    if header.offset - size > LONGEST_EXTENSION:
        raise PoanError(f"{path}: expected voxels in the first 64 MiB, got byte {header.offset}")
    file.seek(size)
    return nifti_header.with_extension(header, file.read(header.offset - size))


def _unpack(
    file: BinaryIO, path: Path, header: nifti_header.ScanHeader | None, scratch: Path | None
) -> tuple[nifti_header.ScanHeader, BinaryIO]:
    """Unpack a gzip file into a nameless temporary one; its header, if not yet known.

    Bytes after the voxels are checked but not kept, so that a lying stream fills no disk.
    """
    packed_size = os.fstat(file.fileno()).st_size
    chunks = inflate(file, path)
    start = b""
    while header is None and len(start) < nifti_header.LONGEST_HEADER:
        with reading(path):
            chunk = next(chunks, b"")
        if not chunk:
            break
        start += chunk
    known = header or nifti_header.parse_header(
        start[: nifti_header.LONGEST_HEADER], path, detached=False
    )
    if known.offset + known.voxel_bytes > packed_size * LARGEST_RATIO:
        _check_size(path, known, packed_size, " compressed")
    left = known.offset + known.voxel_bytes
    unpacked = temporary_file(scratch)
    try:
        for chunk in _resume(start, chunks, path):
            with writing(scratch):
                unpacked.write(chunk[: max(left, 0)])
            left -= len(chunk)
        with writing(scratch):
            unpacked.seek(0)
        return header or _leading_header(unpacked, path), unpacked
    except BaseException:
        unpacked.close()
        raise


def _resume(start: bytes, chunks: Iterator[bytes], path: Path) -> Iterator[bytes]:
    yield start
    while True:
        with reading(path):
            chunk = next(chunks, b"")
        if not chunk:
            return
        yield chunk


def temporary_file(scratch: Path | None) -> BinaryIO:
    """A nameless file that vanishes when it is closed or the process ends."""
    with writing(scratch):
        return tempfile.TemporaryFile(dir=scratch, prefix="poan-")


@contextlib.contextmanager
def writing(folder: Path | None) -> Iterator[None]:
    """Turn what the operating system refuses in the temporary folder into one line."""
    try:
        yield
    except OSError as error:
        where = folder or Path(tempfile.gettempdir())
        raise PoanError(f"{where}: cannot write a temporary file: {error.strerror}") from None


def _check_size(path: Path, header: nifti_header.ScanHeader, got: int, what: str = "") -> None:
    if got < header.voxel_bytes:
        shape = "x".join(map(str, header.shape))
        raise PoanError(
            f"{path}: {shape} {header.dtype.name} needs {header.voxel_bytes} bytes of voxels, "
            f"the file holds {max(got, 0)}{what}"
        )
