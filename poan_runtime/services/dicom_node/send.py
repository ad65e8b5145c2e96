"""To peers: instances, questions about their storage, answers about ours."""

import contextlib
import ssl
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom import AE, build_role, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    Verification,
)

from poan_runtime.services.dicom_node.checkpoint import Checkpoint
from poan_runtime.services.dicom_node.config import Peer, Tls
from poan_runtime.services.dicom_node.outbox import Item, References

WAIT_FOR_ANSWER_S = 1.0
NO_SUCH_INSTANCE, CLASS_CONFLICT = 0x0112, 0x0119


class SendError(Exception):
    """A peer that does not answer, or does not take what it gets: one line, tried again later."""


class Caller:
    """Associations that we ask for, under our own title."""

    def __init__(self, ae_title: str, timeout_s: float = 30.0, tls: Tls | None = None) -> None:
        self._title, self._timeout_s, self._tls = ae_title, timeout_s, tls

    def send(
        self, peer: Peer, items: Sequence[Item], root: Path, sent: Callable[[Item], None]
    ) -> None:
        """Send instances; ``sent`` is told of each one that the peer says it has."""
        kinds = sorted({item.class_uid for item in items})
        with self._associated(peer, kinds) as association:
            for item in items:
                try:
                    answer = association.send_c_store(pydicom.dcmread(root / item.file))
                except (ValueError, RuntimeError, OSError) as error:
                    raise SendError(
                        f"{peer.name}: cannot be sent ({type(error).__name__})"
                    ) from None
                _check(peer, answer)
                sent(item)

    def echo(self, peer: Peer) -> None:
        """Ask whether it is there."""
        with self._associated(peer, [Verification]) as association:
            _check(peer, association.send_c_echo())

    def ask(
        self,
        peer: Peer,
        items: Sequence[Item],
        about_to: Callable[[str], None],
        answered: Callable[[Any], int],
    ) -> None:
        """Ask a peer to keep instances (PS3.4 J.3.2).

        ``about_to`` gets the transaction's UID before it is sent, ``answered`` the event of an
        answer that comes at once; others come to the door.
        """
        transaction = str(generate_uid(prefix=None))
        asked = commitment_body(transaction, [(i.class_uid, i.instance_uid) for i in items])
        handlers: Any = [(evt.EVT_N_EVENT_REPORT, lambda event: (answered(event), None))]
        with self._associated(peer, [StorageCommitmentPushModel], handlers) as association:
            about_to(transaction)
            answer, _ = association.send_n_action(
                asked, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
            )
            _check(peer, answer)
            association.join(WAIT_FOR_ANSWER_S)

    def tell(
        self, peer: Peer, transaction_uid: str, kept: References, failed: dict[tuple[str, str], int]
    ) -> None:
        """Answer a peer that asked whether we keep instances (PS3.4 J.3.3)."""
        told = commitment_body(transaction_uid, kept)
        if failed:
            told.FailedSOPSequence = _items([*failed])
            for item, reason in zip(told.FailedSOPSequence, failed.values(), strict=True):
                item.FailureReason = reason
        role = build_role(StorageCommitmentPushModel, scp_role=True)
        kinds = [StorageCommitmentPushModel]
        with self._associated(peer, kinds, negotiate=[role]) as association:
            answer, _ = association.send_n_event_report(
                told,
                2 if failed else 1,
                StorageCommitmentPushModel,
                StorageCommitmentPushModelInstance,
            )
            _check(peer, answer)

    @contextlib.contextmanager
    def _associated(
        self,
        peer: Peer,
        kinds: Sequence[str],
        handlers: Any = (),
        negotiate: Sequence[Any] = (),
    ) -> Iterator[Association]:
        ae = AE(ae_title=self._title)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = self._timeout_s
        ae.connection_timeout = min(10.0, self._timeout_s)
        for kind in kinds:
            ae.add_requested_context(kind, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        association = ae.associate(
            peer.host,
            peer.port,
            ae_title=peer.ae_title,
            evt_handlers=[*handlers],
            ext_neg=[*negotiate],
            tls_args=self._tls_of(peer),
        )
        association._reactor_checkpoint = Checkpoint()
        if not association.is_established:
            refused = "refuses us" if association.is_rejected else "does not answer"
            raise SendError(f"{peer.name}: {refused}")
        try:
            if not association.accepted_contexts:
                raise SendError(f"{peer.name}: accepts none of the kinds of image to send")
            yield association
        finally:
            if association.is_established:
                association.release()

    def _tls_of(self, peer: Peer) -> tuple[ssl.SSLContext, str] | None:
        if not peer.tls:
            return None
        assert self._tls is not None, "a configuration with such a peer has certificates"
        return client_context(self._tls), peer.host


def server_context(tls: Tls) -> ssl.SSLContext:
    """For our door: guests must show a certificate that the authority signed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    return _loaded(context, tls)


def client_context(tls: Tls) -> ssl.SSLContext:
    """For peers: theirs must be signed by the authority and bear their host's name."""
    return _loaded(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), tls)


def _loaded(context: ssl.SSLContext, tls: Tls) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(tls.certificate, tls.key)
    context.load_verify_locations(tls.ca)
    return context


def commitment_body(transaction_uid: str, references: Sequence[tuple[str, str]]) -> Dataset:
    """A question or an answer about storage; without references the sequence is left out."""
    body = Dataset()
    body.TransactionUID = UID(transaction_uid)
    if references:
        body.ReferencedSOPSequence = _items(references)
    return body


def _items(references: Sequence[tuple[str, str]]) -> Items:
    made = []
    for kind, instance in references:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = UID(kind), UID(instance)
        made.append(item)
    return Items(made)


def _check(peer: Peer, answer: Dataset) -> None:
    """Success and warnings (0xB...) are fine."""
    status = answer.get("Status")
    if status is None:
        raise SendError(f"{peer.name}: broke off")
    if status != 0 and status >> 12 != 0xB:
        raise SendError(f"{peer.name}: answered with status {status:04X}")
