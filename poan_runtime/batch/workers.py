"""Several processes, each with its models loaded once, that take scans one after the other.

A process that dies takes one scan with it, which another tries once more. Processes die with
their parent, however it ends.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from poan_runtime.batch.bids import BidsScan
from poan_runtime.batch.one_scan import Cohort, Networks, Result, process, write_record
from poan_runtime.errors import PoanError

TRIES = 2
"""How often a scan is tried whose process died."""
HEADROOM = 1.1
"""What a process is taken to need, relative to the largest that one has needed so far."""


@dataclasses.dataclass
class _Worker:
    """A process, and the scan that it is at."""

    process: BaseProcess
    pipe: Connection
    scan: BidsScan | None = None


class Workers:
    """At most ``count`` processes over a queue of scans, within ``memory`` bytes if given.

    With a bound on memory one process begins alone; the most that any has needed decides how
    many run beside each other.
    """

    def __init__(self, cohort: Cohort, count: int, memory: int | None = None) -> None:
        self._cohort = cohort
        self._count = count
        self._memory = memory
        self._peak = 0
        self._running: list[_Worker] = []
        self._tries: dict[str, int] = {}

    def results(self, scans: Sequence[BidsScan]) -> Iterator[Result]:
        """The result of each scan as it comes; closing the iterator ends the processes."""
        waiting = deque(scans)
        try:
            while waiting or any(worker.scan for worker in self._running):
                self._hand_out(waiting)
                for worker in self._heard():
                    yield from self._result(worker, waiting)
        finally:
            self._end()

    def allowed(self) -> int:
        """How many processes may run now."""
        if self._memory is None:
            return self._count
        if self._peak == 0:
            return 1
        return max(1, min(self._count, int(self._memory / (HEADROOM * self._peak))))

    def _hand_out(self, waiting: deque[BidsScan]) -> None:
        """Give scans to idle processes, start some if more may run, end some if fewer."""
        idle = [worker for worker in self._running if worker.scan is None]
        while idle and len(self._running) > self.allowed():
            self._stop(idle.pop())
        while waiting and (idle or len(self._running) < self.allowed()):
            worker = idle.pop() if idle else self._start()
            scan = waiting.popleft()
            worker.scan = scan
            with contextlib.suppress(BrokenPipeError):  # it died: its sentinel tells
                worker.pipe.send(scan)

    def _heard(self) -> list[_Worker]:
        """Wait until a process answers or dies."""
        busy = [worker for worker in self._running if worker.scan is not None]
        of: dict[Any, _Worker] = {}
        for worker in busy:
            of[worker.pipe] = of[worker.process.sentinel] = worker
        heard = wait(list(of))
        return list({id(of[what]): of[what] for what in heard}.values())

    def _result(self, worker: _Worker, waiting: deque[BidsScan]) -> Iterator[Result]:
        scan = worker.scan
        assert scan is not None
        try:
            result: Result = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            yield from self._died(worker, scan, waiting)
            return
        worker.scan = None
        self._peak = max(self._peak, result.peak_bytes)
        yield result

    def _died(self, worker: _Worker, scan: BidsScan, waiting: deque[BidsScan]) -> Iterator[Result]:
        worker.process.join()
        self._stop(worker)
        self._tries[scan.stem] = tried = self._tries.get(scan.stem, 0) + 1
        if tried < TRIES:
            waiting.append(scan)
            return
        message = f"{scan.path}: its process ended {tried} times ({_how(worker.process)})"
        yield _failed(self._cohort, scan, message)

    def _start(self) -> _Worker:
        ours, theirs = multiprocessing.Pipe()
        # not forked: engines have threads, and a fork copies no thread
        context = multiprocessing.get_context("spawn")
        started = context.Process(target=_work, args=(theirs, self._cohort), daemon=True)
        started.start()
        theirs.close()
        worker = _Worker(process=started, pipe=ours)
        self._running.append(worker)
        return worker

    def _stop(self, worker: _Worker) -> None:
        """Let a process end once it has nothing to do."""
        with contextlib.suppress(BrokenPipeError):  # it has ended
            worker.pipe.send(None)
        worker.pipe.close()
        self._running.remove(worker)
        worker.process.join()

    def _end(self) -> None:
        for worker in self._running:
            if worker.scan is not None:
                worker.process.terminate()
        for worker in [*self._running]:
            self._stop(worker)


def _how(process: BaseProcess) -> str:
    code = process.exitcode or 0
    if code == -getattr(signal, "SIGKILL", 9):  # Windows names none
        return "killed: out of memory?"
    return f"signal {-code}" if code < 0 else f"exit status {code}"


def in_this_process(cohort: Cohort, scans: Sequence[BidsScan]) -> Iterator[Result]:
    """The same without processes of their own."""
    networks = Networks(cohort.options)
    for scan in scans:
        yield _process(cohort, scan, networks)


def _process(cohort: Cohort, scan: BidsScan, networks: Networks) -> Result:
    """As `process`; an error of ours is shown with its traceback and fails this scan alone."""
    try:
        return process(cohort, scan, networks)
    except Exception as error:
        traceback.print_exc()
        return _failed(cohort, scan, f"{scan.path}: {error!r}")


def _failed(cohort: Cohort, scan: BidsScan, message: str) -> Result:
    """A failure that the scan's own run could not record."""
    result = Result(stem=scan.stem, state="failed", message=message)
    with contextlib.suppress(PoanError):  # a full disk, say: the summary tells it all the same
        write_record(cohort.out, scan, result)
    return result


def _work(pipe: Connection, cohort: Cohort) -> None:
    """What a process does: a scan in, a result out, until None comes."""
    _die_with_parent()
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    networks = Networks(cohort.options)
    with contextlib.suppress(EOFError, BrokenPipeError):  # the parent is gone
        while (scan := pipe.recv()) is not None:
            pipe.send(_process(cohort, scan, networks))


def _leave(number: int, frame: Any) -> None:
    """End as an exception does, so that temporary files go."""
    raise SystemExit(128 + number)


def _die_with_parent() -> None:
    """End this process when its parent is gone, even if that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
