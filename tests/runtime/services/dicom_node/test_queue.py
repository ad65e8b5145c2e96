"""The queue: a series' way from its first image to the last delivery, and what a crash costs."""

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

from poan_runtime.services.dicom_node.database import Database
from poan_runtime.services.dicom_node.outbox import Outbox
from poan_runtime.services.dicom_node.queue import Arrival, Queue, Result, Retry


def arrive(queue: Queue, number: int, now: float, **facts: Any) -> bool:
    """One image of series 1."""
    given = {"series_uid": "1", "class_uid": "c", "file": f"{number:05}", "sender": "S"} | facts
    return queue.received(Arrival(instance_uid=f"1.{number}", **given), now)


def test_a_series_becomes_a_job_when_it_is_quiet_and_again_when_it_grows(queue: Queue) -> None:
    arrive(queue, 1, 10.0, arrived=7.0)
    assert queue.complete(now=14.0, quiet_s=5.0) == []
    assert queue.complete(now=15.0, quiet_s=5.0) == ["1"]
    assert queue.complete(now=16.0, quiet_s=5.0) == []
    job = queue.take(16.0)
    assert job is not None
    assert (job.series_uid, job.files, job.attempts, job.arrived) == ("1", ("00001",), 1, 7.0)
    assert queue.take(16.0) is None
    queue.made("1", [], 17.0)
    arrive(queue, 2, 20.0)
    assert queue.complete(now=30.0, quiet_s=5.0) == ["1"]
    again = queue.take(30.0)
    assert again is not None
    assert again.files == ("00001", "00002")


def test_what_comes_while_a_series_is_worked_on_makes_it_due_again(queue: Queue) -> None:
    arrive(queue, 1, 0.0)
    queue.complete(now=10.0, quiet_s=5.0)
    queue.take(10.0)
    arrive(queue, 2, 11.0)
    assert queue.complete(now=20.0, quiet_s=5.0) == []
    queue.made("1", [], 21.0)
    assert queue.complete(now=22.0, quiet_s=5.0) == ["1"]


def test_a_promised_count_completes_each_acquisition_at_once_if_trusted(queue: Queue) -> None:
    for number, acquisition in ((1, 1), (2, 1), (3, 2)):
        arrive(queue, number, 0.0, acquisition=acquisition, promised=2)
    assert queue.complete(now=0.1, quiet_s=5.0, trust_count=True) == []
    arrive(queue, 4, 0.0, acquisition=2, promised=2)
    assert queue.complete(now=0.1, quiet_s=5.0) == []
    assert queue.complete(now=0.1, quiet_s=5.0, trust_count=True) == ["1"]


def test_failures_are_tried_again_later_and_later_and_then_laid_by(database: Database) -> None:
    retry = Retry(first_pause_s=5.0, longest_pause_s=15.0, attempts=4)
    queue, now = Queue(database, retry), 10.0
    arrive(queue, 1, 0.0)
    queue.complete(now=now, quiet_s=5.0)
    for attempt, pause in enumerate((5.0, 10.0, 15.0, 15.0), 1):
        assert queue.take(now) is not None
        assert queue.failed("1", "broken", now) == ("dead" if attempt == 4 else "waiting")
        assert queue.take(now + pause - 0.1) is None
        now += pause
    assert queue.take(1e9) is None
    assert queue.retry() == 1
    assert queue.take(now) is not None
    assert queue.drop("1") == ([], [])  # it is being worked on
    queue.failed("1", "", now)
    assert queue.drop("1") == (["00001"], [])
    assert queue.counts() == {"images": 0, "repeats": 0}


def test_a_crash_is_no_attempt(queue: Queue) -> None:
    arrive(queue, 1, 0.0)
    queue.complete(now=10.0, quiet_s=5.0)
    for _ in range(20):
        job = queue.take(10.0)
        assert job is not None
        assert job.attempts == 1
        assert queue.recover(10.0) == 1


def made(queue: Queue, *peers: str, now: float = 10.0) -> None:
    """Series 1 with two derived instances for each peer."""
    arrive(queue, 1, 0.0)
    queue.complete(now=now, quiet_s=5.0)
    queue.take(now)
    two = (("9.1", "c", "out/a/1"), ("9.2", "c", "out/a/2"))
    queue.made("1", [Result(peer=peer, instances=two) for peer in peers], now)


def test_a_job_is_done_when_its_last_peer_has_everything(queue: Queue, outbox: Outbox) -> None:
    made(queue, "a", "b")
    for peer, state in (("a", "sending"), ("b", "done")):
        delivery = outbox.take(peer, "waiting", 10.0)
        assert delivery is not None
        outbox.delivered(delivery.id, ask=False)
        assert queue.jobs()[0][1] == state


def test_what_was_sent_is_not_sent_again(queue: Queue, outbox: Outbox) -> None:
    made(queue, "a")
    delivery = outbox.take("a", "waiting", 10.0)
    assert delivery is not None
    assert [item.instance_uid for item in delivery.unsent] == ["9.1", "9.2"]
    outbox.sent(delivery.id, "9.1")
    assert outbox.failed(delivery.id, "gone", 10.0) == "waiting"
    assert outbox.take("a", "waiting", 14.9) is None
    later = outbox.take("a", "waiting", 15.0)
    assert later is not None
    assert [item.instance_uid for item in later.unsent] == ["9.2"]
    assert len(later.all_items) == 2


def test_what_a_peer_does_not_keep_is_sent_again(queue: Queue, outbox: Outbox) -> None:
    made(queue, "a")
    delivery = outbox.take("a", "waiting", 10.0)
    assert delivery is not None
    for item in delivery.unsent:
        outbox.sent(delivery.id, item.instance_uid)
    outbox.delivered(delivery.id, ask=True)
    assert outbox.take("a", "waiting", 1e9) is None
    outbox.asked(delivery.id, "7", until=100.0)
    assert outbox.take("a", "asking", 99.0) is None  # its answer is waited for
    assert outbox.answered("7", ["9.1"], ["9.2"], now=20.0)
    again = outbox.take("a", "waiting", 1e9)
    assert again is not None
    assert [item.instance_uid for item in again.unsent] == ["9.2"]
    assert outbox.answered("7", ["9.2"], [], now=30.0)
    assert queue.jobs()[0][1] == "done"
    assert not outbox.answered("8", ["9.1"], [], now=30.0)


def test_a_series_that_grew_sends_the_new_instances_in_place_of_the_old(
    queue: Queue, outbox: Outbox
) -> None:
    made(queue, "a")
    arrive(queue, 2, 20.0)
    queue.complete(now=30.0, quiet_s=5.0)
    queue.take(30.0)
    queue.made("1", [Result(peer="a", instances=(("9.3", "c", "out/b/1"),))], 31.0)
    delivery = outbox.take("a", "waiting", 31.0)
    assert delivery is not None
    assert [item.instance_uid for item in delivery.all_items] == ["9.3"]
    assert outbox.known_files() == {"out/b/1"}


def test_what_was_promised_to_be_kept_is_not_removed_with_age(queue: Queue, outbox: Outbox) -> None:
    made(queue)
    assert queue.finished_before(1.0) == ["1"]
    assert queue.finished_before(0.0) == []
    outbox.promise((("c", "1.1"),))
    assert queue.finished_before(1.0) == []


def _fill(path: Path, start: int) -> None:
    queue = Queue(Database(path))
    for n in range(start, start + 10_000):
        arrive(queue, n, 0.0)
        with (path.parent / "told").open("a") as told:
            told.write(f"{n:05}\n")


def test_kill_9_loses_nothing_that_was_told(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    Database(path)
    for run in range(3):
        process = multiprocessing.get_context("spawn").Process(
            target=_fill, args=(path, run * 10_000)
        )
        process.start()
        told = tmp_path / "told"
        before = told.stat().st_size if told.exists() else 0
        while not told.exists() or told.stat().st_size < before + 66:
            time.sleep(0.01)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    acknowledged = set(told.read_text().split("\n")[:-1])
    assert acknowledged <= set(Queue(Database(path)).files("1"))
    assert len(acknowledged) > 30
