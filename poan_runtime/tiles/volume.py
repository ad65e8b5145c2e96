"""A volume through a runner, slab by slab, while the next slab is read and the last one written."""

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar, cast

from poan_runtime.tiles.air import NO_AIR, Air
from poan_runtime.tiles.layout import Layout
from poan_runtime.tiles.run import Slab, Timings

T = TypeVar("T")
W = TypeVar("W")


class Runner(Protocol[W]):
    """What `run_volume` asks for: makes slabs ready to run, and runs them."""

    @property
    def layout(self) -> Layout: ...

    @property
    def timings(self) -> Timings: ...

    def work(self, start: int, slab: Slab, unit: float, air: Air) -> W: ...

    def run_slabs(self, works: Iterator[W]) -> Iterator[tuple[int, Slab, Slab]]: ...


NO_TURN = contextlib.nullcontext()
Turn = contextlib.AbstractContextManager[object]
"""What may be entered by one run at a time, a lock."""


def run_volume(
    runner: Runner[Any],
    *,
    slices: int,
    unit: float,
    read: Callable[[int, int], Slab],
    turn: Turn = NO_TURN,
    air: Air = NO_AIR,
) -> Generator[tuple[int, Slab, Slab], None, None]:
    """Yield (start, lr, finer) for each slab of a volume, in order; finer (images, n, s*h, s*w).

    ``read(start, stop)`` gives LR slices. The next slab is read and cut into tiles in a thread of
    its own, and run in another, while the last one is looked at. Who wants to write beside the
    inference too does so in a thread of its own. ``turn`` is held while the engine is in use: the
    first slab is read before, and the last is looked at after.
    """
    step = runner.layout.slab

    def works() -> Generator[Any, None, None]:
        for start in range(0, slices, step):
            with runner.timings.time("read"):
                slab = read(start, min(start + step, slices))
            yield runner.work(start, slab, unit, air)

    def in_turn() -> Generator[tuple[int, Slab, Slab], None, None]:
        first = iter([*itertools.islice(prepared, 1)])  # lets go of it once the second is asked for
        with turn:
            yield from runner.run_slabs(itertools.chain(first, prepared))

    with (
        contextlib.closing(ahead(works(), "poan-read")) as prepared,
        contextlib.closing(in_turn()) as running,
        contextlib.closing(ahead(running, "poan-run")) as slabs,
    ):
        yield from slabs


def ahead(items: Iterator[T], name: str) -> Generator[T, None, None]:
    """The items, each made in a thread of that name while the one before is looked at."""
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix=name) as maker:
        upcoming = maker.submit(next, items, end)
        while (item := upcoming.result()) is not end:
            upcoming = maker.submit(next, items, end)
            yield cast(T, item)
            item = None  # a slab is let go before the next is waited for
