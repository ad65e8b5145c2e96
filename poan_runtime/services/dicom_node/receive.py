"""C-STORE, C-ECHO and storage commitment in: first on the disk, then in the queue, then answered.

A peer's question about storage is kept and answered later, in an association of our own.
"""

import hashlib
import logging
import os
import sqlite3
import ssl
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    Verification,
)

from poan_runtime.files import sync_folder
from poan_runtime.images.dicom.files import IMAGES
from poan_runtime.services.dicom_node.clock import steady_s
from poan_runtime.services.dicom_node.listen import Limits, listen
from poan_runtime.services.dicom_node.log import Log, short
from poan_runtime.services.dicom_node.outbox import Commitment, Outbox, References
from poan_runtime.services.dicom_node.queue import Arrival, Queue

SUCCESS, NO_RESOURCES, OTHER_IMAGE, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xA900, 0xC000
PROCESSING_FAILURE, INVALID_ARGUMENT, NOT_OURS, NO_SUCH_ACTION = 0x0110, 0x0115, 0x0122, 0x0123
SYNTAXES = [syntax for syntax in ALL_TRANSFER_SYNTAXES if syntax != DeflatedExplicitVRLittleEndian]
"""Not deflated: a few bytes may unpack to any number of them."""
LAST_TAG = 0x00201209
"""Number of Series Related Instances, the last element that the door looks at."""
MOST_REFERENCES = 100_000

for _name in ("pynetdicom", "pydicom"):
    logging.getLogger(_name).addHandler(logging.NullHandler())
    logging.getLogger(_name).propagate = False


class Receiver:
    """A listening application entity that keeps what comes in ``folder``.

    ``least_free`` bytes of the disk stay free; ``titles`` may call us, all if there are none;
    ``commitment`` says whether we promise storage. `close` lets nobody new in and waits for
    those who are here.
    """

    def __init__(
        self,
        ae_title: str,
        address: tuple[str, int],
        folder: Path,
        queue: Queue,
        outbox: Outbox,
        *,
        limits: Limits | None = None,
        titles: tuple[str, ...] = (),
        least_free: int = 1 << 28,
        tls: ssl.SSLContext | None = None,
        commitment: bool = True,
        log: Log | None = None,
        clock: Callable[[], float] = steady_s,
    ) -> None:
        self._folder, self._queue, self._outbox = folder, queue, outbox
        self._limits, self._least_free = limits or Limits(), least_free
        self._log, self._clock, self._commitment = log or Log(), clock, commitment
        self.refused = 0
        folder.mkdir(parents=True, exist_ok=True)
        ae = AE(ae_title=ae_title)
        ae.require_calling_aet = [*titles]
        ae.add_supported_context(Verification)
        for kind in IMAGES:
            ae.add_supported_context(kind, SYNTAXES)
        ae.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
        handlers: Any = [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_N_ACTION, self._asked),
            (evt.EVT_N_EVENT_REPORT, self._answered),
            (evt.EVT_ABORTED, self._cut_off),
        ]
        self.listening = True
        self._server = listen(ae, address, self._limits, handlers, tls)

    @property
    def port(self) -> int:
        """Where it listens; the one that the system gave if 0 was asked for."""
        return int(self._server.server_address[1])

    def close(self, patience_s: float = 10.0) -> None:
        """Stop listening; who is here may finish within ``patience_s``."""
        self.listening = False
        self._server.shutdown()
        until = time.monotonic() + patience_s
        for association in self._server.active_associations:
            association.join(max(0.0, until - time.monotonic()))
            if association.is_alive():
                association.abort()

    def _store(self, event: Any) -> int:
        """The DIMSE status for one image."""
        status, why = self._stored(event)
        if status != SUCCESS:
            self.refused += 1
            sender = str(event.assoc.requestor.ae_title)
            self._log("refused", sender=sender, status=f"{status:04X}", why=why)
        return status

    def _stored(self, event: Any) -> tuple[int, str]:
        instance, content = str(event.request.AffectedSOPInstanceUID), event.encoded_dataset()
        if len(content) > self._limits.largest:
            return NO_RESOURCES, "larger than is allowed"
        if free_bytes(self._folder) < self._least_free + len(content):
            return NO_RESOURCES, "the disk is full"
        try:
            header = _head(event)
            name = file_name(instance)
            image = _arrival(header, name, str(event.assoc.requestor.ae_title))
        except Exception as error:  # whatever pydicom raises on a broken data set
            return NOT_UNDERSTOOD, f"not readable ({type(error).__name__})"
        if image.instance_uid != instance:
            return OTHER_IMAGE, "the request names another instance"
        if not image.series_uid:
            return NOT_UNDERSTOOD, "no series"
        try:
            write_whole(self._folder / name, content)
            new = self._queue.received(image, self._clock())
        except (OSError, sqlite3.OperationalError) as error:
            return NO_RESOURCES, f"not stored ({type(error).__name__})"
        self._log("stored" if new else "repeated", series=short(image.series_uid), file=name[:12])
        return SUCCESS, ""

    def _cut_off(self, event: Any) -> None:
        """Whoever was let in and ended without a release: silent too long, or gone."""
        self._log("cut off", sender=str(event.assoc.requestor.ae_title))

    def _asked(self, event: Any) -> tuple[int, None]:
        """A peer asks us to keep instances (PS3.4 J.3.2)."""
        if not self._commitment:
            return NOT_OURS, None
        if event.request.ActionTypeID != 1:
            return NO_SUCH_ACTION, None
        if event.request.RequestedSOPInstanceUID != StorageCommitmentPushModelInstance:
            return INVALID_ARGUMENT, None
        try:
            asked = event.action_information
            question = Commitment(
                transaction_uid=str(UID(str(asked.TransactionUID))),
                title=str(event.assoc.requestor.ae_title),
                references=references(asked.get("ReferencedSOPSequence", [])),
            )
        except Exception:
            return PROCESSING_FAILURE, None
        if not question.references or len(question.references) > MOST_REFERENCES:
            return INVALID_ARGUMENT, None
        try:
            self._outbox.is_asked(question)
        except sqlite3.OperationalError:
            return PROCESSING_FAILURE, None
        self._log("commitment asked", by=question.title, instances=len(question.references))
        return SUCCESS, None

    def _answered(self, event: Any) -> tuple[int, None]:
        """A peer answers what we asked."""
        return take_answer(self._outbox, event, self._clock(), self._log), None


def take_answer(outbox: Outbox, event: Any, now: float, log: Log) -> int:
    """Note a peer's N-EVENT-REPORT about storage commitment; the DIMSE status."""
    try:
        told = event.event_information
        kept = references(told.get("ReferencedSOPSequence", []))
        failed = references(told.get("FailedSOPSequence", []))
        transaction = str(told.TransactionUID)
        known = outbox.answered(transaction, [i for _, i in kept], [i for _, i in failed], now)
    except Exception:
        return PROCESSING_FAILURE
    log("commitment told" if known else "commitment unknown", kept=len(kept), failed=len(failed))
    return SUCCESS if known else INVALID_ARGUMENT


def references(sequence: Any) -> References:
    """(class, instance) of each item."""
    return tuple(
        (str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID)) for item in sequence
    )


def file_name(instance_uid: str) -> str:
    """The name of an image's file, which tells nothing about it."""
    return hashlib.sha256(instance_uid.encode()).hexdigest() + ".dcm"


def free_bytes(folder: Path) -> int:
    """What the disk has left for us."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def _head(event: Any) -> Dataset:
    """The data set up to the last element that we look at: neither pixels nor sequences' rest."""
    syntax = event.context.transfer_syntax
    stream = BytesIO(event.request.DataSet.getvalue())
    return read_dataset(
        stream,
        is_implicit_VR=syntax.is_implicit_VR,
        is_little_endian=syntax.is_little_endian,
        stop_when=lambda tag, vr, length: tag > LAST_TAG,
    )


def _arrival(header: Dataset, name: str, sender: str) -> Arrival:
    promised = header.get("NumberOfSeriesRelatedInstances")
    of_series = promised is not None
    if promised is None:
        promised = header.get("ImagesInAcquisition")
    acquisition = None if of_series else _whole(header.get("AcquisitionNumber"))
    return Arrival(
        instance_uid=str(header.SOPInstanceUID),
        series_uid=str(header.SeriesInstanceUID),
        class_uid=str(header.SOPClassUID),
        file=name,
        sender=sender,
        acquisition=acquisition,
        promised=_whole(promised),
        arrived=time.time(),
    )


def _whole(value: Any) -> int | None:
    """A whole number above zero; None for whatever else a header may hold."""
    try:
        number = int(str(value))
    except ValueError:
        return None
    return number if 0 < number < 1 << 31 else None


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all, and is on the disk when this returns.

    A file of that name that is there already stays.
    """
    if path.exists():
        sync_folder(path.parent)
        return
    partial = path.with_suffix(f".{os.getpid()}.{time.monotonic_ns()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)
