"""gzip streams, read in bounded memory and checked to the last byte."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from poan_runtime.errors import PoanError

GZIP_MAGIC = b"\x1f\x8b"
LARGEST_RATIO = 1032
"""Deflate cannot expand further than this."""
COMPRESSED_CHUNK = 1 << 18
PLAIN_CHUNK = 1 << 22


def inflate(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """The decompressed bytes of a gzip file in chunks of up to 4 MiB.

    Several members follow each other as one stream and zero padding at the end is allowed, as
    gzip itself does. A wrong checksum, length or end raises PoanError.
    """
    pending = b""
    while pending or (pending := file.read(COMPRESSED_CHUNK)):
        stream = zlib.decompressobj(wbits=31)
        while not stream.eof:
            pending = pending or file.read(COMPRESSED_CHUNK)
            if not pending:
                raise PoanError(f"{path}: the gzip stream ends early; the file is cut short")
            try:
                chunk = stream.decompress(pending, PLAIN_CHUNK)
            except zlib.error as error:
                raise PoanError(f"{path}: damaged gzip stream ({error})") from None
            pending = stream.unconsumed_tail
            if chunk:
                yield chunk
        pending = _after_padding(stream.unused_data, file)


def _after_padding(rest: bytes, file: BinaryIO) -> bytes:
    """What follows the zero bytes after a member: nothing, or the start of the next one."""
    while not (rest := rest.lstrip(b"\0")):
        rest = file.read(COMPRESSED_CHUNK)
        if not rest:
            break
    return rest
