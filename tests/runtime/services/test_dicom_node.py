"""The node's queue and its door: nothing acknowledged is lost, nobody else gets in."""

import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import MRImageStorage, Verification

from poan_runtime.services.dicom_node import receive
from poan_runtime.services.dicom_node.queue import FIRST_PAUSE_S, MOST_ATTEMPTS, Queue
from poan_runtime.services.dicom_node.receive import Door, Receiver
from tests.runtime.images.dicom.made import image, program, write

# pynetdicom leaves the socket of an association that it ends to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue(tmp_path / "queue.db")


def door(tmp_path: Path, **changes: Any) -> Door:
    settings: dict[str, Any] = {
        "ae_title": "POAN",
        "host": "127.0.0.1",
        "port": 0,
        "folder": tmp_path / "in",
        "least_free": 0,
    }
    return Door(**settings | changes)


@pytest.fixture
def receiver(tmp_path: Path, queue: Queue) -> Iterator[Receiver]:
    opened = Receiver(door(tmp_path), queue, clock=lambda: 100.0)
    yield opened
    opened.close()


def sent(port: int, images: list[Dataset], title: str = "SENDER") -> list[int]:
    """The status of each C-STORE; empty if nobody answers."""
    ae = AE(ae_title=title)
    ae.add_requested_context(MRImageStorage)
    ae.add_requested_context(Verification)
    association = ae.associate("127.0.0.1", port, ae_title="POAN")
    if not association.is_established:
        return []
    statuses = [association.send_c_store(ds).get("Status") for ds in images]
    association.release()
    return statuses


def images(count: int = 3) -> list[Dataset]:
    made = [image(n + 1, (0.0, 0.0, 4.0 * n), np.full((8, 8), n)) for n in range(count)]
    for ds in made:
        ds.file_meta = pydicom.dataset.FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    return made


def test_images_are_on_the_disk_and_in_the_queue_once(
    tmp_path: Path, queue: Queue, receiver: Receiver
) -> None:
    assert sent(receiver.port, images()) == [0, 0, 0]
    assert sent(receiver.port, images()[:1]) == [0]
    assert queue.counts() == {"images": 3, "repeats": 1}
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


@pytest.mark.parametrize("limit", [{"largest": 100}, {"least_free": 1 << 60}])
def test_limits_of_size_and_disk_are_kept(
    tmp_path: Path, queue: Queue, limit: dict[str, int]
) -> None:
    limited = Receiver(door(tmp_path, **limit), queue)
    try:
        assert sent(limited.port, images(1)) == [0xA700]
    finally:
        limited.close()


def test_only_those_on_the_lists_come_in(tmp_path: Path, queue: Queue) -> None:
    titled = Receiver(door(tmp_path, allowed_titles=("SCANNER",)), queue)
    elsewhere = Receiver(door(tmp_path, allowed_addresses=("192.0.2.1",)), queue)
    try:
        assert sent(titled.port, images(1)) == []
        assert sent(titled.port, images(1), "SCANNER") == [0]
        assert sent(elsewhere.port, images(1)) == []
    finally:
        titled.close()
        elsewhere.close()


def test_a_series_becomes_a_job_when_it_is_quiet_and_again_when_it_grows(queue: Queue) -> None:
    queue.received("1.1", "1", "a", "S", 10.0)
    assert queue.complete(now=14.0, quiet_s=5.0) == []
    assert queue.complete(now=15.0, quiet_s=5.0) == ["1"]
    assert queue.complete(now=16.0, quiet_s=5.0) == []
    job = queue.take(16.0)
    assert job is not None
    assert (job.series_uid, job.images, job.attempts) == ("1", 1, 1)
    assert queue.take(16.0) is None
    queue.done("1")
    queue.received("1.2", "1", "b", "S", 20.0)
    assert queue.complete(now=30.0, quiet_s=5.0) == ["1"]


def test_failures_are_tried_again_later_and_later_and_then_laid_by(queue: Queue) -> None:
    queue.received("1.1", "1", "a", "S", 0.0)
    queue.complete(now=10.0, quiet_s=5.0)
    now = 10.0
    for attempt in range(1, MOST_ATTEMPTS + 1):
        assert queue.take(now) is not None
        state = queue.failed("1", "peer gone", now)
        pause = FIRST_PAUSE_S * 2 ** (attempt - 1)
        assert state == ("dead" if attempt == MOST_ATTEMPTS else "waiting")
        assert queue.take(now + pause - 0.1) is None
        now += pause
    assert queue.take(1e9) is None
    assert queue.retry() == 1
    assert queue.take(now) is not None
    assert not queue.drop("1")  # it is being worked on
    queue.failed("1", "", now)
    assert queue.drop("1")
    assert queue.counts() == {"images": 0, "repeats": 0}


def _fill(path: Path, start: int) -> None:
    queue = Queue(path)
    for n in range(start, start + 10_000):
        queue.received(f"1.{n}", "1", str(n), "S", 0.0)
        with (path.parent / "told").open("a") as told:
            told.write(f"{n}\n")


def test_kill_9_loses_nothing_that_was_told(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    Queue(path)
    for run in range(3):
        process = multiprocessing.get_context("spawn").Process(
            target=_fill, args=(path, run * 10_000)
        )
        process.start()
        told = tmp_path / "told"
        before = told.stat().st_size if told.exists() else 0
        while not told.exists() or told.stat().st_size < before + 60:
            time.sleep(0.01)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    acknowledged = set(told.read_text().split("\n")[:-1])
    assert acknowledged <= set(Queue(path).files("1"))
    assert len(acknowledged) > 30


def test_what_was_being_worked_on_in_a_crash_waits_again(queue: Queue) -> None:
    queue.received("1.1", "1", "a", "S", 0.0)
    queue.complete(now=10.0, quiet_s=5.0)
    assert queue.take(10.0) is not None
    assert queue.recover() == 1
    assert queue.take(10.0) is not None


def test_storescu_and_echoscu_of_dcmtk_are_answered(
    tmp_path: Path, queue: Queue, receiver: Receiver
) -> None:
    file = write(images(1)[0], tmp_path / "one.dcm")
    where = ["-aec", "POAN", "127.0.0.1", str(receiver.port)]
    for line in ([program("echoscu"), *where], [program("storescu"), *where, str(file)]):
        assert subprocess.run(line, capture_output=True).returncode == 0
    assert queue.counts()["images"] == 1
