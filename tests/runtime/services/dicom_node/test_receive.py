"""The node's door: what is acknowledged is on the disk, and nobody holds the door up."""

import io
import os
import random
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from poan_runtime.services.dicom_node import listen, receive
from poan_runtime.services.dicom_node.listen import Limits
from poan_runtime.services.dicom_node.log import Log
from poan_runtime.services.dicom_node.outbox import Outbox
from poan_runtime.services.dicom_node.queue import Queue
from poan_runtime.services.dicom_node.receive import Receiver
from poan_runtime.services.dicom_node.send import commitment_body
from tests.runtime.images.dicom.made import program, write
from tests.runtime.services.dicom_node.peer import HERE, echoed, images, sent, until

# pynetdicom leaves the socket of an association that it ends to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
Door = Callable[..., Receiver]


@pytest.fixture
def door(tmp_path: Path, queue: Queue, outbox: Outbox) -> Iterator[Callable[..., Receiver]]:
    """A receiver with some settings."""
    opened: list[Receiver] = []

    def open_(**settings: Any) -> Receiver:
        given = {"least_free": 0, "clock": lambda: 100.0, "log": Log(io.StringIO())} | settings
        opened.append(Receiver("POAN", (HERE, 0), tmp_path / "in", queue, outbox, **given))
        return opened[-1]

    yield open_
    for receiver in opened:
        receiver.close(0.0)


@pytest.fixture
def receiver(door: Door) -> Receiver:
    return door()


def test_images_are_on_the_disk_and_in_the_queue_once(
    tmp_path: Path, queue: Queue, receiver: Receiver
) -> None:
    assert sent(receiver.port, images()) == [0, 0, 0]
    assert sent(receiver.port, images()[:1]) == [0]
    assert queue.counts() == {"images": 3, "repeats": 1, "arriving": 1}
    series = str(images()[0].SeriesInstanceUID)
    stored = [pydicom.dcmread(tmp_path / "in" / name) for name in queue.files(series)]
    assert [ds.SOPInstanceUID for ds in stored] == [ds.SOPInstanceUID for ds in images()]
    assert [int(ds.pixel_array[0, 0]) for ds in stored] == [0, 1, 2]
    assert not any("Secret" in path.name for path in (tmp_path / "in").iterdir())


def test_fsync_and_the_queue_come_before_the_answer(
    queue: Queue, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, received = os.fsync, queue.received

    def noted_fsync(handle: int) -> None:
        fsync(handle)
        order.append("fsync")

    def noted_received(*arguments: Any) -> bool:
        new = received(*arguments)
        order.append("queue")
        return new

    monkeypatch.setattr(receive.os, "fsync", noted_fsync)
    monkeypatch.setattr(queue, "received", noted_received)
    receiver._server.bind(evt.EVT_DIMSE_SENT, lambda event: order.append("answer"))
    assert sent(receiver.port, images(1)) == [0]
    assert order == ["fsync", "fsync", "queue", "answer"]  # the file, its folder


def test_an_image_that_cannot_be_stored_is_refused_and_not_queued(
    queue: Queue, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(receive, "write_whole", full)
    assert sent(receiver.port, images(1)) == [0xA700]
    assert queue.counts() == {"images": 0, "repeats": 0}


@pytest.mark.parametrize("limit", [{"limits": Limits(largest=100)}, {"least_free": 1 << 60}])
def test_limits_of_size_and_disk_are_kept(door: Door, limit: dict[str, Any]) -> None:
    assert sent(door(**limit).port, images(1)) == [0xA700]


def test_a_message_that_is_larger_by_far_is_cut_off_while_it_comes(door: Door) -> None:
    receiver = door(limits=Limits(largest=100))
    assert sent(receiver.port, images(1, side=1200)) == [None]
    assert echoed(receiver.port)


def test_only_those_on_the_lists_come_in(door: Door) -> None:
    titled = door(titles=("SCANNER",))
    assert sent(titled.port, images(1)) == []
    assert sent(titled.port, images(1), "SCANNER") == [0]
    assert sent(door(limits=Limits(allowed=("192.0.2.1",))).port, images(1)) == []


def test_a_data_set_that_contradicts_its_request_is_refused(door: Door, queue: Queue) -> None:
    receiver = door()
    one = images(1)[0]

    def lie(event: Any) -> None:
        event.message.command_set.AffectedSOPInstanceUID = "1.2.3"

    handlers = [(evt.EVT_DIMSE_SENT, lie)]
    assert sent(receiver.port, [one], evt_handlers=handlers) == [0xA900]
    assert queue.counts()["images"] == 0


def test_idle_and_slow_guests_of_one_address_hold_up_no_other(door: Door) -> None:
    receiver = door(limits=Limits(most_associations=6, most_per_address=3, timeout_s=2.0))
    guests = [socket.create_connection((HERE, receiver.port)) for _ in range(20)]
    for guest in guests[:2]:
        guest.send(b"\x01\x00\x00\x00")  # half of a PDU's head, and then nothing
    try:
        start = time.monotonic()
        assert echoed(receiver.port, bind_address=("127.0.0.2", 0))
        assert time.monotonic() - start < 2.0  # no guest had to time out first
        assert until(lambda: echoed(receiver.port), 20.0)
    finally:
        for guest in guests:
            guest.close()


@pytest.mark.slow
def test_an_oversized_pdu_is_hung_up_on_without_being_read(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listen, "GREETING_S", 300.0)  # nobody is hung up on for being slow
    receiver = door(limits=Limits(timeout_s=300.0))
    with socket.create_connection((HERE, receiver.port)) as guest:
        guest.send(struct.pack(">BBL", 1, 0, 2 * listen.LONGEST_PDU))
        guest.settimeout(60)
        assert guest.recv(100) == b""
    assert echoed(receiver.port)


@pytest.mark.slow
def test_broken_data_sets_are_answered_and_the_door_stays_open(
    door: Door, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver, chance = door(), random.Random(7)
    from pynetdicom import association as module

    whole = module.encode

    def broken(*arguments: Any) -> bytes:
        content = bytearray(whole(*arguments) or b"")
        for _ in range(chance.randint(1, 12)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        return bytes(content[: chance.choice([len(content), chance.randrange(8, len(content))])])

    with monkeypatch.context() as patched:
        patched.setattr(module, "encode", broken)
        answers = [sent(receiver.port, images(20)) for _ in range(10)]
    flat = [status for statuses in answers for status in statuses]
    assert len(flat) == 200
    assert set(flat) <= {0, 0xC000, 0xA900}
    assert 0xC000 in flat
    assert echoed(receiver.port)


@pytest.mark.slow
def test_a_question_about_storage_is_on_the_disk_before_it_is_answered(
    door: Door, outbox: Outbox
) -> None:
    transaction = str(generate_uid(prefix=None))
    assert asked(door().port, transaction, images(2)) == 0
    question = outbox.question(now=0.0)
    assert question is not None
    assert (question.transaction_uid, question.title) == (transaction, "SENDER")
    assert [uid for _, uid in question.references] == [ds.SOPInstanceUID for ds in images(2)]


@pytest.mark.slow
def test_a_node_that_keeps_nothing_says_so(door: Door, outbox: Outbox) -> None:
    assert asked(door(commitment=False).port, "1.2.3", images(1)) == 0x0122
    assert outbox.question(now=0.0) is None


def asked(port: int, transaction: str, wanted: list[Dataset]) -> int:
    """The status of an N-ACTION for storage commitment."""
    ae = AE(ae_title="SENDER")
    ae.add_requested_context(StorageCommitmentPushModel)
    association = ae.associate(HERE, port, ae_title="POAN")
    body = commitment_body(transaction, [(ds.SOPClassUID, ds.SOPInstanceUID) for ds in wanted])
    answer, _ = association.send_n_action(
        body, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
    )
    association.release()
    return int(answer.Status)


@pytest.mark.slow
def test_storescu_and_echoscu_of_dcmtk_are_answered(
    tmp_path: Path, queue: Queue, receiver: Receiver
) -> None:
    file = write(images(1)[0], tmp_path / "one.dcm")
    where = ["-aec", "POAN", "127.0.0.1", str(receiver.port)]
    for line in ([program("echoscu"), *where], [program("storescu"), *where, str(file)]):
        assert subprocess.run(line, capture_output=True).returncode == 0
    assert queue.counts()["images"] == 1


@pytest.mark.slow
def test_who_ends_without_a_release_is_a_line(door: Door) -> None:
    log = io.StringIO()
    receiver = door(log=Log(log))
    ae = AE(ae_title="SENDER")
    ae.add_requested_context(StorageCommitmentPushModel)
    ae.associate(HERE, receiver.port, ae_title="POAN").abort()
    assert until(lambda: '"event": "cut off", "sender": "SENDER"' in log.getvalue())
