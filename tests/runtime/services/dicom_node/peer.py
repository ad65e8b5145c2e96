"""A sender, and a peer that keeps what it gets."""

import collections
import io
import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, StoragePresentationContexts, build_role, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    MRImageStorage,
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    Verification,
)

from poan_runtime.services.dicom_node.config import read_config
from poan_runtime.services.dicom_node.log import Log
from poan_runtime.services.dicom_node.node import Node
from tests.runtime.images.dicom.made import ROOT, image

HERE = "127.0.0.1"


def images(count: int = 3, series: int = 2, side: int = 8) -> list[Dataset]:
    """A made series; each plane has one value, its number."""
    made = [image(n + 1, (0.0, 0.0, 4.0 * n), np.full((side, side), n)) for n in range(count)]
    for ds in made:
        ds.SeriesInstanceUID = f"{ROOT}2.{series}"
        ds.SOPInstanceUID = f"{ROOT}3.{series}.{ds.InstanceNumber}"
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return made


def sent(port: int, images: list[Dataset], title: str = "SENDER", **named: Any) -> list[int]:
    """The status of each C-STORE; empty if nobody answers."""
    ae = AE(ae_title=title)
    ae.add_requested_context(MRImageStorage)
    ae.add_requested_context(Verification)
    association = ae.associate(HERE, port, ae_title="POAN", **named)
    if not association.is_established:
        left = association.dul.socket
        if left is not None and left.socket is not None:
            left.socket.close()  # pynetdicom forgets it after an alert of TLS
        return []
    statuses = [association.send_c_store(ds).get("Status") for ds in images]
    association.release()
    return statuses


def echoed(port: int, **named: Any) -> bool:
    """Whether a C-ECHO is answered."""
    ae = AE(ae_title="SENDER")
    ae.add_requested_context(Verification)
    association = ae.associate(HERE, port, ae_title="POAN", **named)
    if not association.is_established:
        return False
    status = association.send_c_echo().get("Status")
    association.release()
    return bool(status == 0)


class Archive:
    """A peer. ``status`` is what it answers; ``keeps`` whether it commits to what it has."""

    def __init__(self, title: str = "PACS", tls: Any = None) -> None:
        self.title, self.status, self.keeps = title, 0, True
        self.got: list[Dataset] = []
        self.asked: list[Dataset] = []
        self.told: list[Dataset] = []
        self.answers_to: int | None = None
        self._tls, self._ae, self.port = tls, AE(ae_title=title), 0
        for context in StoragePresentationContexts:
            self._ae.add_supported_context(context.abstract_syntax or "", ALL_TRANSFER_SYNTAXES)
        self._ae.add_supported_context(Verification)
        self._ae.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
        self.start()

    def start(self) -> None:
        """Listen, on the same port as before."""
        handlers: Any = [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_N_ACTION, self._asked),
            (evt.EVT_N_EVENT_REPORT, self._told),
        ]
        server: Any = self._ae.start_server(
            (HERE, self.port), block=False, evt_handlers=handlers, ssl_context=self._tls
        )
        self.port, self._server = server.server_address[1], server

    def stop(self) -> None:
        """Go away."""
        here = self._server.active_associations
        self._server.shutdown()
        for association in here:
            association.join(5)

    def times(self) -> collections.Counter[str]:
        """How often each instance came."""
        return collections.Counter(str(ds.SOPInstanceUID) for ds in self.got)

    def _store(self, event: Any) -> int:
        if self.status == 0:
            dataset = event.dataset
            dataset.file_meta = event.file_meta
            self.got.append(dataset)
        return self.status

    def _asked(self, event: Any) -> tuple[int, None]:
        self.asked.append(event.action_information)
        threading.Thread(target=self._answer, args=(event.action_information,)).start()
        return 0, None

    def _answer(self, asked: Dataset) -> None:
        assert self.answers_to is not None
        told = Dataset()
        told.TransactionUID = asked.TransactionUID
        name = "ReferencedSOPSequence" if self.keeps else "FailedSOPSequence"
        setattr(told, name, asked.ReferencedSOPSequence)
        for item in [] if self.keeps else told.FailedSOPSequence:
            item.FailureReason = 0x0112
        ae = AE(ae_title=self.title)
        ae.add_requested_context(StorageCommitmentPushModel)
        role = build_role(StorageCommitmentPushModel, scp_role=True)
        association = ae.associate(HERE, self.answers_to, ae_title="POAN", ext_neg=[role])
        association.send_n_event_report(
            told,
            1 if self.keeps else 2,
            StorageCommitmentPushModel,
            StorageCommitmentPushModelInstance,
        )
        association.release()

    def _told(self, event: Any) -> tuple[int, None]:
        self.told.append(event.event_information)
        return 0, None


def decoded(dataset: Dataset) -> Any:
    """The pixels of an instance that a peer got."""
    pixels = pydicom.pixels.pixel_array(dataset)
    return np.asarray(pixels)


def until(holds: Callable[[], bool], patience_s: float = 30.0) -> bool:
    """Wait for something; whether it came."""
    end = time.monotonic() + patience_s
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


class Running:
    """A node that is stepped by the test; what it logs is in ``lines``."""

    def __init__(self, config: Path) -> None:
        self._log = io.StringIO()
        self.node = Node(read_config(config), Log(self._log))

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.getvalue().splitlines()]

    def events(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == event]

    def until(self, holds: Callable[[], bool], patience_s: float = 60.0) -> bool:
        def stepped() -> bool:
            self.node.step()
            return holds()

        return until(stepped, patience_s)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server((HERE, 0)) as server:
        return int(server.getsockname()[1])
