"""Weights that an ONNX graph keeps in files of their own must lie in the graph's folder.

Engines refuse others only in their newer releases, and onnx, which could tell, is not installed
with the runtime; so the few fields that matter are read from the protobuf stream itself.
"""

from collections.abc import Iterator
from pathlib import Path

from poan_runtime.errors import PoanError
from poan_runtime.files import reading

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
"""How a field of a protobuf message is written."""
LONGEST_VARINT = 10
TENSOR, ENTRY = "tensor", "entry"
WITHIN = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: TENSOR, 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: TENSOR, 6: "graph", 10: TENSOR, 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: TENSOR, 2: TENSOR},
    TENSOR: {13: ENTRY},
}
"""Numbers of the fields that lead to a tensor's external data, by message (onnx.proto)."""
KEY, VALUE = 1, 2


def refuse_weights_outside(path: Path) -> None:
    """Raises PoanError where the graph names weights out of its folder, or is no ONNX graph."""
    with reading(path):
        content = memoryview(path.read_bytes())
    try:
        outside = [name for name in locations(content) if not is_within(name, path.parent)]
    except ValueError:
        raise PoanError(f"{path}: cannot load it: this is no ONNX graph") from None
    if outside:
        raise PoanError(f"{path}: cannot load it: its weights are out of its folder: {outside[0]}")


def is_within(location: str, folder: Path) -> bool:
    """Whether a file lies in the folder, links followed, by a name that does not leave it.

    >>> is_within("weights.bin", Path("/models")), is_within("a/../b.bin", Path("/models"))
    (True, False)
    """
    if ".." in location or "\0" in location or Path(location).is_absolute():
        return False
    try:
        return (folder / location).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # RuntimeError: links in a circle
        return False


def locations(model: memoryview) -> Iterator[str]:
    """Where the tensors of an ONNX model say that their values lie. ValueError if it is none."""
    waiting = [("model", model)]
    while waiting:
        kind, message = waiting.pop()
        if kind == ENTRY:
            entry = dict(fields(message))
            if bytes(entry.get(KEY, b"")) == b"location":
                yield bytes(entry.get(VALUE, b"")).decode("utf-8", "surrogateescape")
            continue
        inner = WITHIN[kind]
        waiting += [(inner[number], part) for number, part in fields(message) if number in inner]


def fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of each field that has a length; the others are passed over.

    >>> [(number, bytes(part)) for number, part in fields(memoryview(b"\\x08\\x05\\x12\\x01a"))]
    [(2, b'a')]
    """
    place = 0
    while place < len(message):
        tag, place = varint(message, place)
        kind, start = tag & 7, place
        if kind == LENGTH:
            length, start = varint(message, place)
            place = start + length
        elif kind in (FIXED64, FIXED32):
            place += 8 if kind == FIXED64 else 4
        elif kind == VARINT:
            _, place = varint(message, place)
        else:
            raise ValueError(f"no field of ONNX is written as {kind}")
        if place > len(message) or tag >= 1 << 32:
            raise ValueError("a field ends behind its message, or has a number that none has")
        if kind == LENGTH:
            yield tag >> 3, message[start:place]


def varint(message: memoryview, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, and the place behind it."""
    value = 0
    for index, byte in enumerate(message[place : place + LONGEST_VARINT]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, place + index + 1
    raise ValueError("a number without an end")
