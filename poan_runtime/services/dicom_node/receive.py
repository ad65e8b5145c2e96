"""C-STORE and C-ECHO in: a file is whole on the disk, then in the queue, then answered."""

import dataclasses
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    EnhancedMRImageStorage,
    MRImageStorage,
    Verification,
)

from poan_runtime.services.dicom_node.queue import Queue

SUCCESS, NO_RESOURCES, NOT_UNDERSTOOD, REFUSED = 0x0000, 0xA700, 0xC000, 0x0124


@dataclasses.dataclass(frozen=True, kw_only=True)
class Door:
    """Who may come in, and how much of what they bring is kept.

    Empty allow-lists let everyone in. ``least_free`` and ``largest`` are bytes.
    """

    ae_title: str
    host: str
    port: int
    folder: Path
    allowed_titles: tuple[str, ...] = ()
    allowed_addresses: tuple[str, ...] = ()
    most_associations: int = 8
    largest: int = 1 << 30
    least_free: int = 1 << 28


class Receiver:
    """A listening application entity; `close` waits for nobody new and lets the rest end."""

    def __init__(self, door: Door, queue: Queue, clock: Callable[[], float] = time.time) -> None:
        self._door, self._queue, self._clock = door, queue, clock
        door.folder.mkdir(parents=True, exist_ok=True)
        ae = AE(ae_title=door.ae_title)
        ae.maximum_associations = door.most_associations
        ae.network_timeout = ae.acse_timeout = ae.dimse_timeout = 30
        ae.require_calling_aet = [*door.allowed_titles]
        ae.add_supported_context(Verification)
        for kind in (MRImageStorage, EnhancedMRImageStorage):
            ae.add_supported_context(kind, ALL_TRANSFER_SYNTAXES)
        handlers: Any = [(evt.EVT_C_STORE, self._store)]
        server: Any = ae.start_server((door.host, door.port), block=False, evt_handlers=handlers)
        server.verify_request = self._allowed
        self._server = server

    @property
    def port(self) -> int:
        """Where it listens; the one that the system gave if 0 was asked for."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def _allowed(self, request: Any, address: tuple[str, int]) -> bool:
        """Whether the address is on the list; others are hung up on before they speak."""
        allowed = self._door.allowed_addresses
        return not allowed or address[0] in allowed

    def _store(self, event: Any) -> int:
        """The DIMSE status for one image."""
        request = event.request
        instance, size = str(request.AffectedSOPInstanceUID), len(event.encoded_dataset())
        if size > self._door.largest:
            return NO_RESOURCES
        free = os.statvfs(self._door.folder)
        if free.f_bavail * free.f_frsize < self._door.least_free + size:
            return NO_RESOURCES
        try:
            series = str(event.dataset.SeriesInstanceUID)
        except Exception:
            return NOT_UNDERSTOOD
        name = hashlib.sha256(instance.encode()).hexdigest() + ".dcm"
        try:
            write_whole(self._door.folder / name, event.encoded_dataset())
        except OSError:
            return NO_RESOURCES
        sender = str(event.assoc.requestor.ae_title)
        self._queue.received(instance, series, name, sender, self._clock())
        return SUCCESS


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all, and is on the disk when this returns.

    A file of that name that is there already stays.
    """
    if path.exists():
        return
    partial = path.with_suffix(f".{os.getpid()}.{time.monotonic_ns()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    finally:
        partial.unlink(missing_ok=True)
