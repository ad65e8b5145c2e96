"""A gzip writer that compresses blocks on several threads into one ordinary stream.

Each block is deflated on its own and ends on a byte boundary (a sync flush), so the blocks
join to one member that any reader takes. zlib releases the interpreter lock, so the
compression runs beside the inference.
"""

import collections
import struct
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

BLOCK = 1 << 20
HEADER = b"\x1f\x8b\x08\0" + bytes(4) + b"\x04\xff"  # deflate, no name, no time, fastest
EMPTY_LAST_BLOCK = b"\x03\0"


class Writes(Protocol):
    """Anything bytes can be written to."""

    def write(self, data: bytes, /) -> object: ...


class GzipWriter:
    """Compress to ``file``; `close` ends the stream and leaves ``file`` open."""

    def __init__(self, file: Writes, *, level: int = 1, threads: int = 2) -> None:
        self._file = file
        self._level = level
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="poan-gzip")
        self._pending: collections.deque[Future[bytes]] = collections.deque()
        self._most_pending = 2 * threads
        self._checksum = 0
        self._size = 0
        file.write(HEADER)

    def write(self, data: bytes | memoryview) -> None:
        """Queue ``data``; writes finished blocks and waits while too many are unfinished."""
        self._checksum = zlib.crc32(data, self._checksum)
        self._size += len(data)
        view = memoryview(data)
        for start in range(0, len(data), BLOCK):
            block = view[start : start + BLOCK]
            self._pending.append(self._pool.submit(_deflate, block, self._level))
            self._drain(self._most_pending)

    def close(self) -> None:
        """Write what is queued and the trailer."""
        self._drain(0)
        self._pool.shutdown()
        self._file.write(EMPTY_LAST_BLOCK)
        self._file.write(struct.pack("<II", self._checksum, self._size & 0xFFFFFFFF))

    def abandon(self) -> None:
        """Stop without ending the stream."""
        self._pool.shutdown(cancel_futures=True)

    def _drain(self, most: int) -> None:
        while len(self._pending) > most:
            self._file.write(self._pending.popleft().result())


def _deflate(block: memoryview, level: int) -> bytes:
    stream = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
    return stream.compress(block) + stream.flush(zlib.Z_SYNC_FLUSH)
