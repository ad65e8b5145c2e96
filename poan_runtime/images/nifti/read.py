"""A scan on disk, read slice by slice in bounded memory.

A compressed scan is unpacked once into a nameless temporary file, which checks its gzip
checksum before any work is done and vanishes with the process, however that ends. Reads use
a file position, not a memory map, so that pages of the file never count as ours.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from poan_runtime import geometry
from poan_runtime.errors import PoanError
from poan_runtime.files import reading, sha256_of, temporary_file, writing
from poan_runtime.images.nifti import header as nifti_header
from poan_runtime.images.nifti.inflate import GZIP_MAGIC, LARGEST_RATIO, HashedFile, inflate
from poan_runtime.intensity import as_float32

READ_BYTES = 1 << 22
LONGEST_EXTENSION = 1 << 26


class Scan:
    """An open scan, a `Source` and a context manager. `header` is all that the file says."""

    def __init__(
        self,
        path: Path,
        header: nifti_header.ScanHeader,
        voxels: BinaryIO,
        resources: contextlib.ExitStack,
        hashes: dict[str, str],
    ) -> None:
        self.path = path
        self.header = header
        self.shape = header.shape
        self.affine = header.affine
        self.dtype = header.dtype
        self.warnings = header.warnings
        self._voxels = voxels
        self._resources = resources
        self._hashes = hashes

    def __enter__(self) -> "Scan":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """See `Source.close`."""
        self._resources.close()

    def sha256(self) -> dict[str, str]:
        """See `Source.sha256`; a file that was not hashed while it was unpacked is read again."""
        parts = dict.fromkeys(scan_files(self.path))
        return {part.name: self._hashes.get(part.name) or sha256_of(part) for part in parts}

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
        with np.errstate(over="ignore", invalid="ignore"):
            real = stored * slope + inter
        return np.ascontiguousarray(as_float32(real))


def open_scan(path: str | Path, scratch: Path | None = None, *, hashed: bool = False) -> Scan:
    """Open and check a NIfTI-1, NIfTI-2 or Analyze file, or either file of a pair.

    A compressed one is unpacked into ``scratch`` (the system's temporary folder if None), and
    with ``hashed`` its hash is taken on the way. Compression is told by content, not by name.
    """
    path = Path(path)
    header_path, voxel_path = scan_files(path)
    hashes: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        header = None if voxel_path == header_path else _detached_header(header_path)
        with reading(voxel_path):
            file: BinaryIO = stack.enter_context(voxel_path.open("rb"))
            packed = file.read(2) == GZIP_MAGIC
            file.seek(0)
        if packed:
            read = HashedFile(file) if hashed else file
            header, file = _unpack(file, read, voxel_path, header, scratch)
            stack.enter_context(file)
            if isinstance(read, HashedFile):
                hashes[voxel_path.name] = read.sha256()
        elif header is None:
            with reading(path):
                start = file.read(nifti_header.LONGEST_HEADER)
                header = _leading_header(start, path)
                header = _with_leading_extension(header, file)
        with reading(voxel_path):
            got = file.seek(0, os.SEEK_END) - header.offset
        _check_size(voxel_path, header, got)
        return Scan(path, header, file, stack.pop_all(), hashes)


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


def _leading_header(start: bytes, path: Path) -> nifti_header.ScanHeader:
    """The header at the start of an unpacked single file, without its extension."""
    start = start[: nifti_header.LONGEST_HEADER]
    header = nifti_header.parse_header(start, path, detached=False)
    if header.offset - header.struct.sizeof_hdr > LONGEST_EXTENSION:
        raise PoanError(f"{path}: expected voxels in the first 64 MiB, got byte {header.offset}")
    return header


def _with_leading_extension(
    header: nifti_header.ScanHeader, file: BinaryIO
) -> nifti_header.ScanHeader:
    """The same with the bytes between header and voxels, read from the file."""
    size = header.struct.sizeof_hdr
    file.seek(size)
    return nifti_header.with_extension(header, file.read(header.offset - size))


def _unpack(
    file: BinaryIO,
    read: BinaryIO | HashedFile,
    path: Path,
    header: nifti_header.ScanHeader | None,
    scratch: Path | None,
) -> tuple[nifti_header.ScanHeader, BinaryIO]:
    """Unpack a gzip file, read by ``read``, into a nameless temporary one; its header, if new.

    Bytes after the voxels are checked but not kept, so that a lying stream fills no disk.
    """
    packed_size = os.fstat(file.fileno()).st_size
    chunks = inflate(read, path)
    with reading(path):
        start = next(chunks, b"") if header is None else b""
    known = header or _leading_header(start, path)
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
            return header or _with_leading_extension(known, unpacked), unpacked
    except BaseException:
        with contextlib.suppress(OSError):  # a full disk refuses once more what was buffered
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


def _check_size(path: Path, header: nifti_header.ScanHeader, got: int, what: str = "") -> None:
    if got < header.voxel_bytes:
        shape = "x".join(map(str, header.shape))
        raise PoanError(
            f"{path}: {shape} {header.dtype.name} needs {header.voxel_bytes} bytes of voxels, "
            f"the file holds {max(got, 0)}{what}"
        )
