"""A CPU's cores side by side, each on a tile of its own."""

import math
import os
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from poan_runtime.engines.backend import Backend, Tiles


class TileByTile(Backend):
    """A backend that runs single tiles by several engines at once, in batches of any size.

    Attention is bound by memory: sharing one batch between two threads took 19 to 23 ms a tile
    (poan-lite x2, tile 32), a tile to each thread 9 to 10, one thread alone 17.
    """

    fills_batches = False
    """A batch costs what its tiles cost, so one that is not full is run as it is."""

    def __init__(self, engines: Sequence[Callable[[Tiles], Tiles]]) -> None:
        """Each engine takes (1, 1, h, w), runs on one core and returns a new array."""
        self._idle: queue.SimpleQueue[Callable[[Tiles], Tiles]] = queue.SimpleQueue()
        for engine in engines:
            self._idle.put(engine)
        self._pool = ThreadPoolExecutor(len(engines), thread_name_prefix="poan-tile")

    def start(self, batch: Tiles) -> Callable[[], Tiles]:
        """Queue a batch; what waits for its answer. See `Backend.start`."""
        tiles = [batch[index : index + 1] for index in range(len(batch))]
        answers = [self._pool.submit(self._run_one, tile) for tile in tiles]
        return lambda: np.concatenate([answer.result() for answer in answers])

    def run(self, batch: Tiles) -> Tiles:
        """See `poan_runtime.engines.backend.Backend.run`."""
        return self.start(batch)()

    def close(self) -> None:
        """Stop the threads and let the engines go; a batch that is under way is finished."""
        self._pool.shutdown()
        self._idle = queue.SimpleQueue()

    def _run_one(self, tile: Tiles) -> Tiles:
        engine = self._idle.get()
        try:
            return engine(tile)
        finally:
            self._idle.put(engine)


def usable_cores() -> int:
    """Cores that this process may run on: its affinity, and what its cgroup grants (2 for 1.5)."""
    if hasattr(os, "sched_getaffinity"):
        return int(min(len(os.sched_getaffinity(0)), _granted_cores()))
    return os.cpu_count() or 1


def _granted_cores(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> float:
    """The least quota of this process's cgroup (version 2) and those above it; else infinity."""
    try:
        lines = own.read_text("utf-8").splitlines()
    except OSError:
        return math.inf
    path = next((line[len("0::/") :] for line in lines if line.startswith("0::/")), None)
    if path is None:
        return math.inf
    group = root / path
    folders = [group, *group.parents]
    return min(_quota(folder / "cpu.max") for folder in folders[: folders.index(root) + 1])


def _quota(limit: Path) -> float:
    """``QUOTA PERIOD`` in microseconds, or ``max PERIOD``; infinity where there is no limit."""
    try:
        quota, period = limit.read_text("utf-8").split()
        return math.inf if quota == "max" else max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        return math.inf
