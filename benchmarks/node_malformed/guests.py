"""Who talks to the node: a sender of raw bytes, one who asks whether it is there, bad guests."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest import mock

from pydicom.dataset import Dataset, FileMetaDataset
from pynetdicom import AE, association, build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from benchmarks.node_malformed.files import SYNTAXES, Sent

HERE, ELSEWHERE = "127.0.0.1", "127.0.0.2"


def send(files: Iterable[Sent], port: int) -> Iterator[tuple[Sent, int | None]]:
    """Each with the status of its C-STORE; None where the node hung up."""
    at_once: Any = mock.patch.object(association, "encode", lambda ds, *_: ds.raw)
    left = iter(files)
    with at_once:
        one = next(left, None)
        while one is not None:
            established = _associate(port)
            while one is not None and established.is_established:
                try:
                    status = established.send_c_store(_request(one)).get("Status")
                except (RuntimeError, ValueError):
                    status = None
                yield one, status
                one = next(left, None)
            with contextlib.suppress(RuntimeError):
                established.release()


def _associate(port: int) -> Any:
    kinds = [
        "1.2.840.10008.5.1.4.1.1.4",
        "1.2.840.10008.5.1.4.1.1.4.1",
    ]
    contexts = [build_context(kind, syntax) for kind in kinds for syntax in SYNTAXES]
    while True:
        ae = AE(ae_title="SENDER")
        ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = 30
        found = ae.associate(HERE, port, contexts, ae_title="POAN")
        if found.is_established:
            return found
        time.sleep(0.2)


def _request(one: Sent) -> Dataset:
    """What pynetdicom needs to know of the bytes in ``raw``."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = one.kind, one.instance
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = one.syntax
    ds.raw = one.content
    return ds


def echo(port: int, address: str = ELSEWHERE, patience_s: float = 30.0) -> float | None:
    """Seconds until a C-ECHO is answered, asked again where it is turned away; None if never."""
    start = time.perf_counter()
    while time.perf_counter() - start < patience_s:
        ae = AE(ae_title="ECHO")
        ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = 10
        ae.add_requested_context(Verification)
        found = ae.associate(HERE, port, ae_title="POAN", bind_address=(address, 0))
        if found.is_established:
            with contextlib.suppress(RuntimeError, ValueError):
                if found.send_c_echo().get("Status") == 0:
                    took = time.perf_counter() - start
                    found.release()
                    return took
        time.sleep(0.1)
    return None


class Echoes:
    """A thread that asks every half a second; ``seconds`` holds what each answer took."""

    def __init__(self, port: int) -> None:
        self.seconds: list[float | None] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ask, args=(port,), daemon=True)
        self._thread.start()

    def _ask(self, port: int) -> None:
        while not self._ended.wait(0.5):
            self.seconds.append(echo(port))

    def close(self) -> None:
        """Ask no more."""
        self._ended.set()
        self._thread.join(60)


def connected(port: int) -> socket.socket:
    """A plain connection."""
    return socket.create_connection((HERE, port), timeout=10)


def flood(port: int, count: int, rudeness: Callable[[socket.socket], object]) -> dict[str, Any]:
    """Seconds to a C-ECHO while ``count`` guests of one address are here."""
    guests = []
    for _ in range(count):
        with contextlib.suppress(OSError):
            guest = connected(port)
            guests.append(guest)
            rudeness(guest)
    try:
        return {
            "guests": len(guests),
            "echo_from_another_address_s": _rounded(echo(port)),
            "echo_from_the_same_address_s": _rounded(echo(port, HERE, 90.0)),
        }
    finally:
        for guest in guests:
            guest.close()


def associations(port: int, count: int) -> dict[str, Any]:
    """The same with guests who are let in and then say nothing."""
    ae = AE(ae_title="FLOOD")
    ae.connection_timeout = ae.acse_timeout = 10
    ae.add_requested_context(Verification)
    found = [ae.associate(HERE, port, ae_title="POAN") for _ in range(count)]
    try:
        return {
            "guests": count,
            "let_in": sum(one.is_established for one in found),
            "echo_from_another_address_s": _rounded(echo(port)),
            "echo_from_the_same_address_s": _rounded(echo(port, HERE, 90.0)),
        }
    finally:
        for one in found:
            if one.is_established:
                one.abort()


def idle(guest: socket.socket) -> None:
    """Say nothing."""


def half_a_head(guest: socket.socket) -> None:
    """Four of the six bytes of a PDU's head, and then nothing."""
    guest.send(b"\x01\x00\x00\x00")


def four_gigabytes(guest: socket.socket) -> None:
    """A request that says that it has 4 GB."""
    guest.send(struct.pack(">BBL", 1, 0, 0xFFFFFFF0))


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
