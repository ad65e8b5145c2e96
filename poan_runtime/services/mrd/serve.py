"""A server for the scanner's reconstruction: a connection is a measurement."""

import contextlib
import socket
import threading

import numpy as np

from poan_runtime.errors import PoanError, Say
from poan_runtime.network import Network
from poan_runtime.services.mrd.finer import Stream, Way
from poan_runtime.services.mrd.wire import (
    CLOSE_MESSAGE,
    EndOfStream,
    Image,
    Kind,
    image_message,
    read_message,
    text_message,
)

MOST_CONNECTIONS = 4
RAW = "raw data came: poan-mrd takes reconstructed images"


class Server:
    """Listens at once; `run` serves until `close`. Connections share the engine in turns."""

    def __init__(
        self,
        network: Network,
        way: Way,
        address: tuple[str, int],
        *,
        say: Say = print,
        timeout_s: float = 600.0,
    ) -> None:
        self._network, self._way, self._say = network, way, say
        self._timeout_s = timeout_s
        self._turn, self._places = threading.Lock(), threading.Semaphore(MOST_CONNECTIONS)
        self._socket = socket.create_server(address, reuse_port=False)
        self._ended = threading.Event()

    @property
    def port(self) -> int:
        """Where it listens; the one that the system gave if 0 was asked for."""
        return int(self._socket.getsockname()[1])

    def run(self) -> None:
        """Serve until `close`."""
        while not self._ended.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:  # closed
                return
            if not self._places.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._ended.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _serve(self, connection: socket.socket) -> None:
        stream = Stream(self._network, self._way, self._say)
        try:
            with connection:
                connection.settimeout(self._timeout_s)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._converse(connection, stream)
        except (OSError, EndOfStream):
            self._say("the other side hung up")
        finally:
            self._places.release()
            for line in summary(stream):
                self._say(line)

    def _converse(self, connection: socket.socket, stream: Stream) -> None:
        with connection.makefile("rb") as incoming:
            try:
                while True:
                    kind, content = read_message(incoming.read)
                    if kind == Kind.ACQUISITION:
                        raise PoanError(RAW)
                    if isinstance(content, Image):
                        self._answer(connection, stream, content)
                    elif kind == Kind.HEADER:
                        stream.native.read_header(content)
                    elif kind == Kind.CLOSE:
                        break
                self._end(connection, stream)
            except PoanError as error:
                self._say(str(error))
                connection.sendall(text_message(f"poan-mrd: {error}"))
            connection.sendall(CLOSE_MESSAGE)

    def _answer(self, connection: socket.socket, stream: Stream, image: Image) -> None:
        with self._turn:
            answers = [*stream.take(image)]
        for answer in answers:
            connection.sendall(image_message(answer))

    def _end(self, connection: socket.socket, stream: Stream) -> None:
        with self._turn:
            answers = [*stream.end()]
        for answer in answers:
            connection.sendall(image_message(answer))


def warm_up(network: Network, way: Way) -> None:
    """Run one image, so that the first of a measurement does not wait for the engine."""
    tile = network.model.manifest.tile
    noise = np.random.default_rng(0).random((1, tile, tile), np.float32)
    Stream(network, way).super_resolved(noise, 1.0)


def summary(stream: Stream) -> list[str]:
    """What a connection was given, in words."""
    lines = []
    if stream.latencies_s:
        p50, p99 = np.percentile(stream.latencies_s, [50, 99])
        lines.append(
            f"{len(stream.latencies_s)} images super-resolved, p50 {1e3 * p50:.0f} ms, "
            f"p99 {1e3 * p99:.0f} ms"
        )
    if stream.untouched:
        lines.append(f"{stream.untouched} complex or phase images passed through untouched")
    return lines
