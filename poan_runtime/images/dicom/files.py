"""One DICOM file, distrusted: its header, or one line that says why not.

No length field makes us reserve more than the file holds, a deflated file is measured before it
is unpacked, and what pydicom remarks on odd values stays out of the log: it would quote them.
"""

import contextlib
import io
import logging
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import pydicom
from pydicom.dataset import FileDataset
from pydicom.filereader import _read_file_meta_info
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from poan_runtime.errors import PoanError
from poan_runtime.images.dicom.recognise import has_magic

MR = UID("1.2.840.10008.5.1.4.1.1.4")
ENHANCED_MR = UID("1.2.840.10008.5.1.4.1.1.4.1")
LEGACY_ENHANCED_MR = UID("1.2.840.10008.5.1.4.1.1.4.4")
IMAGES = (MR, ENHANCED_MR, LEGACY_ENHANCED_MR)
DIRECTORY = UID("1.2.840.10008.1.3.10")
PDF = UID("1.2.840.10008.5.1.4.1.1.104.1")

MOST_INFLATED = 1 << 28
"""A deflated file may unpack to so many bytes."""
LONGEST_VALUE = "1 MB"
"""Longer values than this are left in the file."""

for _name in ("pydicom", "openjpeg", "rle", "pylibjpeg", "jpeg_ls"):
    logging.getLogger(_name).addHandler(logging.NullHandler())
    logging.getLogger(_name).propagate = False


class ClampedFile(io.BufferedReader):
    """A file whose ``read`` never reserves more memory than there are bytes left."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.name_of_file = path
        self.length = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """At most ``size`` bytes."""
        if size is not None and size > self.length:
            size = -1
        return super().read(size)


def read_header(path: Path, *, pixels: bool = False) -> FileDataset:
    """The file's elements; with ``pixels`` the place of the pixel data too, which is not read.

    Raises PoanError on what is no readable DICOM file.
    """
    if not has_magic(path):
        raise PoanError(f"{path}: expected a DICOM file, got something else")
    with reading(path), ClampedFile(path) as file:
        _check_inflated(path, file)
        file.seek(0)
        return pydicom.dcmread(file, stop_before_pixels=not pixels, defer_size=LONGEST_VALUE)


def refuse_other_kinds(header: FileDataset, path: Path) -> None:
    """Raise PoanError unless the file holds an MR image."""
    with reading(path):
        kind = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
        if kind == DIRECTORY:
            raise PoanError(f"{path}: a DICOMDIR lists images and holds none; name the folder")
        if kind == PDF:
            raise PoanError(f"{path}: holds a PDF, no image")
        if kind is None:
            raise PoanError(f"{path}: does not say what it holds (SOP Class UID is missing)")
        if kind not in IMAGES:
            name = UID(str(kind)).name if UID(str(kind)).is_valid else "an unknown kind"
            raise PoanError(f"{path}: expected an MR image, got {name[:64]}")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a broken file makes of pydicom and its plug-ins into one line.

    pydicom raises nearly every exception there is on a broken file; the cause is named by its
    type alone, for its text may quote the file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except PoanError:
        raise
    except OSError as error:
        what = error.strerror or "cut short"
        raise PoanError(f"{path}: cannot be read: {what}") from None
    except MemoryError:
        raise PoanError(f"{path}: is broken: a length in it is beyond this machine") from None
    except RecursionError:
        raise PoanError(f"{path}: is broken: sequences nested without end") from None
    except Exception as error:
        raise PoanError(f"{path}: is broken: not readable as DICOM ({_type(error)})") from None


def _type(error: Exception) -> str:
    return "decoding failed" if isinstance(error, RuntimeError) else type(error).__name__


def _check_inflated(path: Path, file: io.BufferedReader) -> None:
    """Refuse a deflated file that would unpack to more than `MOST_INFLATED`."""
    file.seek(128 + 4)
    meta = _read_file_meta_info(file)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    length = meta.get("FileMetaInformationGroupLength")
    if length is None:
        raise PoanError(f"{path}: is deflated and does not say where its header ends")
    file.seek(128 + 4 + 12 + int(length))
    inflater, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while (packed := file.read(1 << 16)) and not inflater.eof:
        while packed:
            total += len(inflater.decompress(packed, 1 << 20))
            packed = inflater.unconsumed_tail
            if total > MOST_INFLATED:
                raise PoanError(f"{path}: is deflated and unpacks to over 256 MiB")


def codestream_size(data: bytes) -> tuple[int, int] | None:
    """(rows, columns) that a JPEG, JPEG-LS or JPEG 2000 frame says it has; None if it does not.

    >>> codestream_size(bytes.fromhex("ffd8ffc0000b080010002001011100"))
    (16, 32)
    """
    if data[:4] == b"\xff\x4f\xff\x51" and len(data) >= 24:
        right, bottom, left, top = struct.unpack(">4I", data[8:24])
        return bottom - top, right - left
    at = 2
    while data[:2] == b"\xff\xd8" and at + 9 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            rows, columns = struct.unpack(">2H", data[at + 5 : at + 9])
            return rows, columns
        at += 2 + length
    return None
