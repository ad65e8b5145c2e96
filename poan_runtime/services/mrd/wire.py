"""The ISMRMRD stream protocol, as far as images go (https://ismrmrd.readthedocs.io, MRD 1).

A message is a 16-bit number and what belongs to it, all little-endian. Written anew and not taken
from the package `ismrmrd`, because guests must not be believed: every length has a bound, an XML
header may end in a null byte or be no XML, and no HDF5 library is needed at a scanner.
"""

import dataclasses
import enum
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poan_runtime.errors import PoanError

Read = Callable[[int], bytes]
"""Exactly so many bytes; fewer only at the end of the stream."""

MOST_TEXT = 1 << 24
MOST_VALUES = 1 << 28
CONFIG_FILE_BYTES = 1024


class Kind(enum.IntEnum):
    """Numbers of messages."""

    CONFIG_FILE = 1
    CONFIG_TEXT = 2
    HEADER = 3
    CLOSE = 4
    TEXT = 5
    ACQUISITION = 1008
    IMAGE = 1022
    WAVEFORM = 1026


class ImageType(enum.IntEnum):
    """What an image's values are."""

    MAGNITUDE = 1
    PHASE = 2
    REAL = 3
    IMAGINARY = 4
    COMPLEX = 5


IMAGE_HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("data_type", "<u2"),
        ("flags", "<u8"),
        ("measurement_uid", "<u4"),
        ("matrix_size", "<u2", 3),
        ("field_of_view", "<f4", 3),
        ("channels", "<u2"),
        ("position", "<f4", 3),
        ("read_dir", "<f4", 3),
        ("phase_dir", "<f4", 3),
        ("slice_dir", "<f4", 3),
        ("patient_table_position", "<f4", 3),
        ("average", "<u2"),
        ("slice", "<u2"),
        ("contrast", "<u2"),
        ("phase", "<u2"),
        ("repetition", "<u2"),
        ("set", "<u2"),
        ("acquisition_time_stamp", "<u4"),
        ("physiology_time_stamp", "<u4", 3),
        ("image_type", "<u2"),
        ("image_index", "<u2"),
        ("image_series_index", "<u2"),
        ("user_int", "<i4", 8),
        ("user_float", "<f4", 8),
        ("attribute_string_len", "<u4"),
    ]
)
WAVEFORM_HEADER_BYTES, SAMPLES_AT, WAVEFORM_VALUE_BYTES = 40, 28, 4
TYPES = {1: "<u2", 2: "<i2", 3: "<u4", 4: "<i4", 5: "<f4", 6: "<f8", 7: "<c8", 8: "<c16"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Image:
    """A slice or a slab: ``data`` is (channels, z, y, x), ``head`` a record of `IMAGE_HEADER`."""

    head: np.void
    attributes: str
    data: NDArray[Any]

    @property
    def complex(self) -> bool:
        """Whether values are complex numbers."""
        return self.data.dtype.kind == "c"


class EndOfStream(Exception):
    """The other side is gone between two messages."""


def read_message(read: Read) -> tuple[Kind, Image | str]:
    """The next message; texts are "" where they say nothing that we use."""
    first = read(2)
    if len(first) < 2:
        raise EndOfStream
    try:
        kind = Kind(int.from_bytes(first, "little"))
    except ValueError:
        number = int.from_bytes(first, "little")
        raise PoanError(f"message {number}: not one that an image server knows") from None
    if kind == Kind.IMAGE:
        return kind, read_image(read)
    if kind == Kind.CONFIG_FILE:
        return kind, _text(_exactly(read, CONFIG_FILE_BYTES))
    if kind in (Kind.CONFIG_TEXT, Kind.HEADER, Kind.TEXT):
        return kind, _text(_counted(read, "<I"))
    if kind == Kind.WAVEFORM:
        _skip_waveform(read)
    return kind, ""


def read_image(read: Read) -> Image:
    """The rest of an image message."""
    head = np.frombuffer(_exactly(read, IMAGE_HEADER.itemsize), IMAGE_HEADER)[0]
    if int(head["data_type"]) not in TYPES:
        raise PoanError(f"image: unknown data type {head['data_type']}")
    attributes = _text(_counted(read, "<Q"))
    x, y, z = (int(n) for n in head["matrix_size"])
    shape = (int(head["channels"]), max(z, 1), y, x)
    count = int(np.prod(shape, dtype=np.int64))
    if not 0 < count <= MOST_VALUES:
        raise PoanError(f"image: expected 1 to {MOST_VALUES} values, got {shape}")
    dtype = np.dtype(TYPES[int(head["data_type"])])
    data = np.frombuffer(_exactly(read, count * dtype.itemsize), dtype).reshape(shape)
    return Image(head=head, attributes=attributes, data=data)


def image_message(image: Image) -> bytes:
    """An image as it goes over the wire; sizes and type follow from the data."""
    attributes = image.attributes.encode()
    head = image.head.copy()
    channels, z, y, x = image.data.shape
    head["matrix_size"], head["channels"] = (x, y, z), channels
    head["data_type"] = next(n for n, t in TYPES.items() if np.dtype(t) == image.data.dtype)
    head["attribute_string_len"] = len(attributes)
    parts = [
        struct.pack("<H", Kind.IMAGE),
        head.tobytes(),
        struct.pack("<Q", len(attributes)),
        attributes,
        image.data.tobytes(),
    ]
    return b"".join(parts)


def text_message(text: str) -> bytes:
    """A line for the other side's log."""
    content = text.encode()
    return struct.pack("<HI", Kind.TEXT, len(content)) + content


CLOSE_MESSAGE = struct.pack("<H", Kind.CLOSE)


def _counted(read: Read, length: str) -> bytes:
    """Bytes that a number before them counts."""
    (count,) = struct.unpack(length, _exactly(read, struct.calcsize(length)))
    if count > MOST_TEXT:
        raise PoanError(f"a text of {count} bytes: expected at most {MOST_TEXT}")
    return _exactly(read, count)


def _text(content: bytes) -> str:
    """Text up to the first null byte, which FIRE puts behind its header.

    >>> _text(b"<xml/>" + bytes(2))
    '<xml/>'
    """
    return content.split(b"\0", 1)[0].decode(errors="replace")


def _skip_waveform(read: Read) -> None:
    head = _exactly(read, WAVEFORM_HEADER_BYTES)
    samples, channels = struct.unpack_from("<HH", head, SAMPLES_AT)
    _exactly(read, samples * channels * WAVEFORM_VALUE_BYTES)


def _exactly(read: Read, count: int) -> bytes:
    content = read(count)
    if len(content) < count:
        raise PoanError(f"the stream ends {count - len(content)} bytes too early")
    return content
