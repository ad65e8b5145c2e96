"""Processes that hold their models ready and take one series after the other.

A process that dies or takes too long costs its series an attempt, and another takes its place.
Processes die with their parent, however it ends.
"""

import contextlib
import dataclasses
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from poan_runtime.errors import PoanError
from poan_runtime.services.dicom_node.log import silence_libraries
from poan_runtime.services.dicom_node.work import Answer, How, Networks, Task, work

LEAST_LIFE_S = 2.0
"""A process that ends sooner is not replaced before: it might be so with every one."""


@dataclasses.dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    started: float
    series_uid: str | None = None
    since: float = 0.0

    @property
    def free(self) -> bool:
        """Whether it could take a series now."""
        return self.series_uid is None and self.process.is_alive()


class Workers:
    """``count`` processes, started at once; a series may take ``longest_s`` seconds."""

    def __init__(self, how: How, count: int, longest_s: float) -> None:
        self._how, self._longest_s = how, longest_s
        self._running = [self._start() for _ in range(count)]

    @property
    def idle(self) -> int:
        """How many could take a series now."""
        return sum(worker.free for worker in self._running)

    @property
    def busy(self) -> int:
        """How many are at one."""
        return sum(worker.series_uid is not None for worker in self._running)

    def give(self, task: Task) -> None:
        """Hand a series to an idle process."""
        worker = next(worker for worker in self._running if worker.free)
        worker.series_uid, worker.since = task.series_uid, time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # it has died: `answers` tells
            worker.pipe.send(task)

    def answers(self) -> Iterator[Answer]:
        """What has come since the last call; waits for nothing."""
        for n, worker in enumerate(self._running):
            answer = self._answer(worker)
            ended = not worker.process.is_alive() or answer is _DEAD
            if ended and time.monotonic() - worker.started > LEAST_LIFE_S:
                self._bury(worker)
                self._running[n] = self._start()
            if answer is not None and worker.series_uid is not None:
                yield dataclasses.replace(answer, series_uid=worker.series_uid)
                worker.series_uid = None

    def close(self, patience_s: float = 0.0) -> Iterator[Answer]:
        """End; what is being worked on may finish within ``patience_s``, the rest is killed."""
        until = time.monotonic() + patience_s
        while self.busy and time.monotonic() < until:
            yield from self.answers()
            time.sleep(0.05)
        for worker in self._running:
            self._bury(worker)

    def _answer(self, worker: _Worker) -> Answer | None:
        try:
            if worker.pipe.poll():
                answer: Answer = worker.pipe.recv()
                return answer
        except (EOFError, OSError):
            return _DEAD
        if not worker.process.is_alive():
            return _DEAD
        if worker.series_uid and time.monotonic() - worker.since > self._longest_s:
            worker.process.kill()
            worker.process.join()
            return dataclasses.replace(_DEAD, error=f"took over {self._longest_s:.0f} s")
        return None

    def _start(self) -> _Worker:
        ours, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")  # engines have threads
        process = context.Process(target=_serve, args=(theirs, self._how), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process=process, pipe=ours, started=time.monotonic())

    def _bury(self, worker: _Worker) -> None:
        worker.pipe.close()
        worker.process.kill()
        worker.process.join()


_DEAD = Answer(series_uid="", error="its process ended (out of memory?)")


def _serve(pipe: Connection, how: How) -> None:
    """What a process does: models first, then a task in, an answer out."""
    _die_with_parent()
    silence_libraries()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's business
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    networks = Networks(how.options)
    for rule in how.rules:
        with contextlib.suppress(PoanError):  # said again when a series wants it
            networks.get(rule.model)
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        while True:
            task = pipe.recv()
            pipe.send(_answer_to(task, how, networks))


def _answer_to(task: Task, how: How, networks: Networks) -> Answer:
    """As `work`; an error of ours fails this series alone, and its text may quote the image."""
    try:
        return work(task, how, networks)
    except Exception as error:
        logging.getLogger(__name__).debug("unexpected", exc_info=True)
        return Answer(series_uid=task.series_uid, error=f"unexpected {type(error).__name__}")


def _die_with_parent() -> None:
    """End this process when its parent is gone, even if that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
