"""Slices in, finer slices out: slab by slab, while the next is read and the last is written."""

import collections
import dataclasses
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from poan_runtime.engines.backend import Backend, fills_batches, start_batch
from poan_runtime.errors import PoanError
from poan_runtime.tiles.layout import Plan

Slab = NDArray[np.float32]
Places = NDArray[np.intp]

IN_FLIGHT = 2
"""Batches begun before the first is waited for: on a GPU, copies and computation overlap."""
MOST_CONSTANTS = 64
"""How many answers for constant tiles are kept; a volume has few constants beside zero."""
LOOK_AT_ONCE = 256
"""Tiles gathered at once to look for constant ones."""


class Stages:
    """Seconds spent in each stage, and how many tiles ran and were skipped.

    Reading and writing run beside the inference: their seconds overlap with it.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self.tiles_run = 0
        self.tiles_skipped = 0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start


@dataclasses.dataclass(frozen=True, kw_only=True)
class SliceRunner:
    """Runs slabs (n, h, w) through a network by a plan.

    With ``skip``, a tile of one constant value is run once and its answer used again for every
    other tile of that value; the order of all additions stays the same, so the result is the
    one without skipping, bit for bit, as long as the backend answers a tile alike in every
    batch of one size.
    """

    backend: Backend
    plan: Plan
    skip: bool
    stages: Stages
    constants: dict[int, Slab] = dataclasses.field(default_factory=dict)

    def run(self, slab: Slab, scale: float, advance: Callable[[int], None]) -> Slab:
        """Finer slices (n, s*h, s*w) of real values; ``scale`` is the intensity scale.

        Values that are not finite count as zero. ``advance`` is told of finished tiles.
        """
        plan, s = self.plan, self.plan.scale
        with self.stages.stage("tile"):
            finite: Slab = np.where(np.isfinite(slab), slab, np.float32(0))
            scaled: Slab = np.divide(finite, np.float32(scale), dtype=np.float32)
            padded = scaled[:, plan.rows.index][:, :, plan.columns.index]
            # (n, H, W) -> (n, H - tile + 1, W - tile + 1, tile, tile), a view
            windows: Slab = np.lib.stride_tricks.sliding_window_view(
                padded, (plan.tile, plan.tile), axis=(1, 2)
            )
            places = self._places(len(slab))
            constant = self._constants(windows, places)
            to_run = self._to_run(constant)
        fine = np.zeros((len(slab), s * padded.shape[1], s * padded.shape[2]), np.float32)
        answers = self._answers(windows, places[to_run])
        for place, runs, value in zip(places, to_run, constant, strict=True):
            if runs:
                answer = next(answers)
                if value is not None and len(self.constants) < MOST_CONSTANTS:
                    self.constants[value] = answer.copy()
            else:
                assert value is not None
                answer = self.constants[value]
            with self.stages.stage("blend"):
                self._add(fine, place, answer)
            advance(1)
        self.stages.tiles_run += int(np.count_nonzero(to_run))
        self.stages.tiles_skipped += int(np.count_nonzero(~to_run))
        with self.stages.stage("blend"):
            top, left = s * plan.rows.before, s * plan.columns.before
            inner = fine[:, top : top + s * slab.shape[1], left : left + s * slab.shape[2]]
            inner *= np.float32(scale)
            return inner

    def _places(self, slices: int) -> Places:
        """Slice, row of tiles and column of tiles of each tile, (tiles, 3), in order."""
        counts = (slices, len(self.plan.rows.starts), len(self.plan.columns.starts))
        return np.indices(counts).reshape(3, -1).T

    def _gather(self, windows: Slab, places: Places) -> Slab:
        """Tiles (N, tile, tile) at places."""
        rows = np.asarray(self.plan.rows.starts)[places[:, 1]]
        columns = np.asarray(self.plan.columns.starts)[places[:, 2]]
        tiles: Slab = windows[places[:, 0], rows, columns]
        return tiles

    def _constants(self, windows: Slab, places: Places) -> list[int | None]:
        """For each tile the bit pattern of its one value, or None where values differ."""
        if not self.skip:
            return [None] * len(places)
        values: list[int | None] = [None] * len(places)
        candidates = self._alike_at_probes(windows, places)
        for first in range(0, len(candidates), LOOK_AT_ONCE):
            chosen = candidates[first : first + LOOK_AT_ONCE]
            tiles = self._gather(windows, places[chosen])
            bits = tiles.view(np.int32).reshape(len(tiles), -1)
            same = (bits == bits[:, :1]).all(axis=1)
            for index, value in zip(chosen[same], bits[same, 0], strict=True):
                values[index] = int(value)
        return values

    def _alike_at_probes(self, windows: Slab, places: Places) -> NDArray[np.intp]:
        """Indices of the tiles that could be constant: alike at corners and middle."""
        rows = np.asarray(self.plan.rows.starts)[places[:, 1]]
        columns = np.asarray(self.plan.columns.starts)[places[:, 2]]
        last, middle = self.plan.tile - 1, self.plan.tile // 2
        probes = [(0, 0), (0, last), (last, 0), (last, last), (middle, middle)]
        seen = [windows[places[:, 0], rows, columns, row, column] for row, column in probes]
        return np.flatnonzero(np.all([one == seen[0] for one in seen[1:]], axis=0))

    def _to_run(self, constant: list[int | None]) -> NDArray[np.bool_]:
        """Which tiles must run: all but those whose constant has or will have an answer."""
        known = set(self.constants)
        runs = np.ones(len(constant), bool)
        for index, value in enumerate(constant):
            if value in known:
                runs[index] = False
            elif value is not None and len(known) < MOST_CONSTANTS:
                known.add(value)
        return runs

    def _answers(self, windows: Slab, places: Places) -> Iterator[Slab]:
        """The network's answer (s*tile, s*tile) for each place, in order.

        A batch that is not full repeats its last tile where the backend needs full ones.
        """
        batch = self.plan.batch
        full = fills_batches(self.backend)
        started: collections.deque[tuple[int, int, Callable[[], Slab]]] = collections.deque()
        for first in range(0, len(places), batch):
            chosen = places[first : first + batch]
            with self.stages.stage("tile"):
                filled = chosen[np.minimum(np.arange(batch), len(chosen) - 1)]
                tiles = self._gather(windows, filled if full else chosen)
            with self.stages.stage("inference"):
                # (N, tile, tile) -> (N, 1, tile, tile)
                wait = start_batch(self.backend, tiles[:, None])
                started.append((len(chosen), len(tiles), wait))
            if len(started) == IN_FLIGHT:
                yield from self._finished(*started.popleft())
        while started:
            yield from self._finished(*started.popleft())

    def _finished(self, count: int, batch: int, wait: Callable[[], Slab]) -> Slab:
        """The first ``count`` answers (count, s*tile, s*tile) of a batch, all finite."""
        side = self.plan.scale * self.plan.tile
        with self.stages.stage("inference"):
            out = wait()
        if out.shape != (batch, 1, side, side):
            raise PoanError(
                f"the network answered shape {out.shape} to {batch} tiles of "
                f"{self.plan.tile}; expected {(batch, 1, side, side)}"
            )
        if not np.isfinite(out).all():
            raise PoanError(
                "the network answered NaN or infinity to finite values; nothing was written "
                "(a half-precision model can overflow: try its fp32 file)"
            )
        return out[:count, 0]

    def _add(self, fine: Slab, place: NDArray[np.intp], answer: Slab) -> None:
        plan, s = self.plan, self.plan.scale
        index, row, column = place
        top, left = s * plan.rows.starts[row], s * plan.columns.starts[column]
        side = s * plan.tile
        weights = plan.rows.weights[row][:, None] * plan.columns.weights[column]
        fine[index, top : top + side, left : left + side] += weights * answer


def run_volume(
    runner: SliceRunner,
    *,
    slices: int,
    scale: float,
    read: Callable[[int, int], Slab],
    write: Callable[[int, Slab, Slab], None],
    advance: Callable[[int], None],
) -> None:
    """Run all slices of a volume: ``read(start, stop)``, run, ``write(start, lr, hr)``.

    The next slab is read and the last one written in threads of their own, in order.
    """
    step = runner.plan.slab
    bounds = [(start, min(start + step, slices)) for start in range(0, slices, step)]

    def timed_read(start: int, stop: int) -> Slab:
        with runner.stages.stage("read"):
            return read(start, stop)

    def timed_write(start: int, coarse: Slab, fine: Slab) -> None:
        with runner.stages.stage("write"):
            write(start, coarse, fine)

    written: Future[None] | None = None
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        upcoming = reader.submit(timed_read, *bounds[0])
        for index, (start, _) in enumerate(bounds):
            coarse = upcoming.result()
            if index + 1 < len(bounds):
                upcoming = reader.submit(timed_read, *bounds[index + 1])
            fine = runner.run(coarse, scale, advance)
            if written is not None:
                written.result()
            written = writer.submit(timed_write, start, coarse, fine)
        if written is not None:
            written.result()
