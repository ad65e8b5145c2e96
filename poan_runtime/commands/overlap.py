"""Several scans on one GPU: the next is read and the last written while one is on it."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from poan_runtime.errors import PoanError

Work = Callable[..., dict[str, Any]]


class Turns:
    """The engine's lock, and whether all is to stop."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.stopped = threading.Event()

    def check(self, *_: object) -> None:
        """End a run at its next slab, as an exception does, once the command was told to stop."""
        if self.stopped.is_set():
            raise PoanError("stopped")


def overlapped(jobs: Sequence[Work]) -> Iterator[Work]:
    """The jobs, each started with the `Turns` that they share; in their order."""
    turns = Turns()
    pool = ThreadPoolExecutor(2, thread_name_prefix="poan-scan")
    try:
        started = [pool.submit(job, turns) for job in jobs]
        for one in started:
            yield one.result
    finally:
        turns.stopped.set()
        pool.shutdown(cancel_futures=True)
