"""The node: a door, a queue, workers, a thread for each peer, and the loop that joins them."""

import dataclasses
import math
import sqlite3
import threading
import time
from collections import deque

from poan_runtime.engines.backend import EngineOptions
from poan_runtime.services.dicom_node.clock import steady_s
from poan_runtime.services.dicom_node.config import Config
from poan_runtime.services.dicom_node.database import Database
from poan_runtime.services.dicom_node.listen import Limits
from poan_runtime.services.dicom_node.log import Log, short
from poan_runtime.services.dicom_node.outbox import Outbox
from poan_runtime.services.dicom_node.peers import Loop, Sending, Telling
from poan_runtime.services.dicom_node.queue import Job, Queue
from poan_runtime.services.dicom_node.receive import Receiver, free_bytes
from poan_runtime.services.dicom_node.send import Caller, server_context
from poan_runtime.services.dicom_node.storage import Storage
from poan_runtime.services.dicom_node.work import Answer, How, Task
from poan_runtime.services.dicom_node.workers import Workers

POLL_S = 0.1
SWEEP_S = 60.0


@dataclasses.dataclass
class Tally:
    """What happened since the node was started."""

    series: int = 0
    slices: int = 0
    seconds: float = 0.0
    failures: int = 0


class Node:
    """Everything that runs; made by one thread, which then calls `run` or `step`."""

    def __init__(self, config: Config, log: Log | None = None) -> None:
        self.config, self.log, self.tally = config, log or Log(), Tally()
        self.storage = Storage(config.storage)
        self._lock = self.storage.lock()
        database = Database(self.storage.database)
        self.queue = Queue(database, config.job_retry)
        self.outbox = Outbox(database, config.send_retry)
        self._ended = threading.Event()
        self._answers: deque[Answer] = deque()
        self._letters: dict[str, dict[str, str]] = {}
        self._recover()
        self.workers = Workers(_how(config), config.work.workers, config.work.longest_s)
        timeout_s = config.listen.timeout_s
        caller = Caller(config.listen.ae_title, timeout_s, config.tls)
        self.sendings = {
            peer.name: Sending(peer, config, self.outbox, caller, self.log) for peer in config.peers
        }
        telling = Telling(config, self.outbox, caller, self.log)
        self.loops = [Loop(name, s.step, self.log) for name, s in self.sendings.items()]
        self.loops.append(Loop("commitment", telling.step, self.log))
        self.receiver = _door(config, self.storage, self.queue, self.outbox, self.log)
        self._swept = self._started = time.monotonic()
        self.log("started", port=self.receiver.port, workers=config.work.workers)

    def run(self) -> None:
        """Until `end` is called."""
        while not self._ended.wait(POLL_S):
            try:
                self.step()
            except (OSError, sqlite3.OperationalError) as error:  # a full disk, say
                self.log("held up", where="loop", error=type(error).__name__)
                self._ended.wait(1.0)
        self.close(self.config.listen.timeout_s)

    def end(self) -> None:
        """Let `run` come to its end; may be called from a signal handler."""
        self._ended.set()

    def step(self) -> None:
        """What is due now: answers of workers, complete series, idle workers, old files."""
        self._answers += self.workers.answers()
        self._take_answers()
        work, now = self.config.work, steady_s()
        for series in self.queue.complete(now, self._quiet_s(), trust_count=work.trust_count):
            self.storage.take_up(series)
            self.log("complete", series=short(series))
        for _ in range(self.workers.idle):
            job = self.queue.take(now)
            if job is None:
                break
            self._give(job)
        self._lay_by_undelivered()
        if time.monotonic() - self._swept > SWEEP_S:
            self._swept = time.monotonic()
            self._remove_old(now)

    def close(self, patience_s: float = 0.0) -> None:
        """Let nobody in, finish what is at hand within ``patience_s``; the rest waits on disk."""
        self.receiver.close(patience_s)
        self._answers += self.workers.close(patience_s)
        self._take_answers()
        for loop in self.loops:
            loop.close(patience_s)
        self.log("ended")

    def troubles(self) -> list[str]:
        """Why the node is not well; empty if it is."""
        found = [f"thread {n} has ended" for n, loop in enumerate(self.loops) if not loop.alive]
        if not self.receiver.listening:
            found.append("does not listen")
        if free_bytes(self.storage.root) < self.config.listen.least_free_mib << 20:
            found.append("the disk is full: images are refused")
        try:
            self.queue.counts()
        except sqlite3.Error as error:
            found.append(f"queue: {type(error).__name__}")
        return found

    def _give(self, job: Job) -> None:
        self.workers.give(
            Task(
                series_uid=job.series_uid,
                sender=job.sender,
                files=tuple(self.storage.received / name for name in job.files),
                out=self.storage.new_folder(job.series_uid),
                root=self.storage.root,
                arrived=job.arrived,
            )
        )
        self.log(
            "working", series=short(job.series_uid), images=len(job.files), attempt=job.attempts
        )

    def _quiet_s(self) -> float:
        """How long a series must be quiet; while we were away it could not be heard."""
        up_s = time.monotonic() - self._started
        return self.config.work.quiet_s if up_s > self.config.work.quiet_s else math.inf

    def _take_answers(self) -> None:
        """An answer is let go once it is in the queue: a full disk only holds it up."""
        while self._answers:
            self._take(self._answers[0])
            self._answers.popleft()

    def _take(self, answer: Answer) -> None:
        series, now = answer.series_uid, steady_s()
        if answer.error:
            self._failed(series, answer.error, now)
        elif not answer.results:
            self.queue.unmatched(series)
            self.storage.take_up(series)
            self.log("unmatched", series=short(series))
        else:
            old = self.outbox.files_of(series)
            self.queue.made(series, answer.results, now)
            self.storage.take_up(series)
            self.storage.remove(old)
            self.tally.series += 1
            self.tally.slices += answer.slices
            self.tally.seconds += answer.seconds
            facts = {"slices": answer.slices, "seconds": round(answer.seconds, 3)}
            self.log("super-resolved", series=short(series), **facts)

    def _failed(self, series: str, error: str, now: float) -> None:
        self.tally.failures += 1
        state = self.queue.failed(series, error, now)
        self.log("failed", series=short(series), state=state, error=error)
        if state == "dead":
            why = {"series": short(series), "error": error}
            self.storage.lay_by(series, [f"in/{name}" for name in self.queue.files(series)], why)

    def _lay_by_undelivered(self) -> None:
        """A dead letter for each series that a peer did not take, whichever thread gave it up."""
        undelivered: dict[str, dict[str, str]] = {}
        for series, peer, _, error in self.outbox.deliveries("dead"):
            undelivered.setdefault(series, {})[peer] = error
        for series, errors in undelivered.items():
            if self._letters.get(series) != errors or not self.storage.is_laid_by(series):
                why = {"series": short(series), "not sent to": errors}
                self.storage.lay_by(series, self.outbox.files_of(series), why)
        self._letters = undelivered

    def _recover(self) -> None:
        waiting = self.queue.recover(steady_s())
        self.outbox.recover(steady_s(), self.config.send.commitment_s)
        known = {f"in/{name}" for name in self.queue.known_files()} | self.outbox.known_files()
        swept = self.storage.sweep(known)
        self.log("recovered", series=waiting, swept=swept)

    def _remove_old(self, now: float) -> None:
        for series in self.queue.finished_before(now - 3600 * self.config.work.keep_hours):
            forget(series, self.queue, self.storage)
            self.log("removed", series=short(series))


def forget(series: str, queue: Queue, storage: Storage) -> bool:
    """Drop a series with its files; False if it is being worked on or not there."""
    received, derived = queue.drop(series)
    storage.remove([*(f"in/{name}" for name in received), *derived])
    if received:
        storage.take_up(series)
    return bool(received)


def _how(config: Config) -> How:
    work = config.work
    return How(
        rules=config.rules,
        options=EngineOptions(
            backend=work.backend,
            device=work.device,
            precision=work.precision,
            threads=work.threads or None,
        ),
        uid_root=work.uid_root,
        burn_in=work.burn_in,
    )


def _door(config: Config, storage: Storage, queue: Queue, outbox: Outbox, log: Log) -> Receiver:
    door = config.listen
    limits = Limits(
        allowed=door.allowed_addresses,
        most_associations=door.most_associations,
        most_per_address=door.most_per_address,
        timeout_s=door.timeout_s,
        largest=door.largest_mib << 20,
    )
    return Receiver(
        door.ae_title,
        (door.host, door.port),
        storage.received,
        queue,
        outbox,
        limits=limits,
        titles=door.allowed_titles,
        least_free=door.least_free_mib << 20,
        tls=server_context(config.tls) if door.tls and config.tls else None,
        commitment=door.commitment,
        log=log,
    )
