"""gzip streams, read in bounded memory and checked to the last byte."""

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from poan_runtime.errors import PoanError

GZIP_MAGIC = b"\x1f\x8b"
LARGEST_RATIO = 1032
"""Deflate cannot expand further than this."""
PLAIN_CHUNK = 1 << 22


class HashedFile:
    """A file whose bytes are hashed as they are read, from its start to its end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """See `io.RawIOBase.read`."""
        data = self._file.read(size)
        self._hash.update(data)
        return data

    def sha256(self) -> str:
        """SHA-256 of what was read so far."""
        return self._hash.hexdigest()


def inflate(file: BinaryIO | HashedFile, path: Path) -> Iterator[bytes]:
    """The decompressed bytes of a gzip file in chunks of up to 4 MiB.

    Several members follow each other as one stream and zero padding at the end is allowed, as
    gzip itself does. A wrong checksum, length or end raises PoanError.
    """
    with gzip.GzipFile(fileobj=file, mode="rb") as stream:  # type: ignore[arg-type]
        while True:
            try:
                chunk = stream.read(PLAIN_CHUNK)
            except EOFError:
                raise PoanError(
                    f"{path}: the gzip stream ends early; the file is cut short"
                ) from None
            except (gzip.BadGzipFile, zlib.error) as error:
                raise PoanError(f"{path}: damaged gzip stream ({error})") from None
            if not chunk:
                return
            yield chunk
