"""Slabs in, finer slabs out: which tiles run, in which batches, and how they are put together."""

import collections
import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from poan_runtime.engines.backend import Backend
from poan_runtime.errors import PoanError
from poan_runtime.tiles.air import NO_AIR, Air, interpolated, which_are_air
from poan_runtime.tiles.layout import Layout

Slab = NDArray[np.float32]
Places = NDArray[np.intp]

MOST_CONSTANTS = 64
"""How many answers for constant tiles are kept; a volume has few constants beside zero."""
LOOK_AT_ONCE = 256
"""Tiles gathered at once to look for constant ones and for air."""


NO_ANSWER: Slab = np.empty((0, 0), np.float32)
"""Stands for an answer where tiles are only counted."""


class Timings:
    """Seconds by name, and how many tiles ran and were skipped.

    Reading and writing run beside the inference: their seconds overlap with it.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self._adding = threading.Lock()
        self.tiles_run = 0
        self.tiles_skipped = 0
        self.tiles_of_air = 0
        """How many of those that were skipped were interpolated."""
        self.too_large = 0
        """Voxels of the result that float32 could not hold."""

    @property
    def tiles_in_words(self) -> str:
        """For people: how many tiles ran, and how many did not need to."""
        air = f" ({self.tiles_of_air} of them air)" if self.tiles_of_air else ""
        if self.tiles_of_air and self.tiles_of_air == self.tiles_skipped:
            air = ", all air"
        return f"{self.tiles_run} tiles run, {self.tiles_skipped} skipped{air}"

    @contextlib.contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Add the time of the block to what ``name`` took."""
        start = time.perf_counter()
        try:
            yield
        finally:
            with self._adding:
                self.seconds[name] += time.perf_counter() - start


class Tiles(NamedTuple):
    """The tiles of a slab: where they lie, which hold one constant, which must run."""

    windows: Slab
    """A view (n, rows, columns, tile, tile) of every place at which a tile could lie."""
    places: Places
    """Slice, row and column of each tile, (tiles, 3), in order of the layout."""
    constants: list[int | None]
    """The bit pattern of a tile's one value; None where values differ."""
    to_run: NDArray[np.bool_]
    """Which tiles the network sees; what neither runs nor is constant is air."""


class Work(NamedTuple):
    """A slab that is ready to run."""

    start: int
    lr: Slab
    unit: float
    tiles: Tiles


@dataclasses.dataclass(frozen=True, kw_only=True)
class SliceRunner:
    """Runs slabs (n, h, w) through a network by a layout.

    With ``skip``, a tile of one constant value is run once and its answer used again for every
    other tile of that value; the order of all additions stays the same, so the result is the
    one without skipping, bit for bit, as long as the backend answers a tile alike in every
    batch of one size. A tile of air is interpolated: only voxels that lie in one change.
    """

    backend: Backend
    layout: Layout
    skip: bool
    timings: Timings
    answers: dict[int, Slab] = dataclasses.field(default_factory=dict)
    """Answers to constant tiles, by the bit pattern of the constant."""
    promised: set[int] = dataclasses.field(default_factory=set)
    """Constants that have an answer, or will once the slabs that were made ready have run."""

    def run(self, slab: Slab, unit: float, air: Air = NO_AIR) -> Slab:
        """Finer slices (n, s*h, s*w) of real values; ``unit`` is what intensities are divided by.

        Values that are not finite count as zero.
        """
        ((_, _, fine),) = self.run_slabs(iter([self.work(0, slab, unit, air)]))
        first: Slab = fine[0]
        return first

    def work(self, start: int, slab: Slab, unit: float, air: Air = NO_AIR) -> Work:
        """A slab made ready to run; slabs are made ready in the order in which they run."""
        with self.timings.time("tile"):
            tiles = self.tiles(slab, unit, air)
            self._promise(tiles)
        return Work(start, slab, unit, tiles)

    def run_slabs(self, works: Iterator[Work]) -> Iterator[tuple[int, Slab, Slab]]:
        """(start, lr, finer) of each slab, in order; finer is (images, n, s*h, s*w).

        Batches are filled across the borders of slabs, so that an engine runs on while one slab
        is finished and the next begun.
        """
        feed = Feed(self, works)
        while (work := feed.next_work()) is not None:
            yield work.start, work.lr, self._finer(work, feed)

    def _finer(self, work: Work, feed: "Feed") -> Slab:
        layout, s, tiles = self.layout, self.layout.scale, work.tiles
        rows, columns = len(layout.rows.index), len(layout.columns.index)
        images = self.backend.images
        fine = np.zeros((images, len(work.lr), s * rows, s * columns), np.float32)
        for place, answer in self._every_answer(tiles, feed):
            with self.timings.time("blend"):
                self._add(fine, place, answer)
        self.timings.tiles_run += int(np.count_nonzero(tiles.to_run))
        self.timings.tiles_skipped += int(np.count_nonzero(~tiles.to_run))
        self.timings.tiles_of_air += count_air(tiles)
        with self.timings.time("blend"):
            top, left = s * layout.rows.before, s * layout.columns.before
            height, width = work.lr.shape[1:]
            inner = fine[..., top : top + s * height, left : left + s * width]
            return self._within_float32(inner, work.unit)

    def _within_float32(self, inner: Slab, unit: float) -> Slab:
        """Real values; what float32 cannot hold is cut to its ends, and counted."""
        with np.errstate(over="ignore", invalid="ignore"):
            inner *= np.float32(unit)
            total = inner.sum(dtype=np.float64)  # +inf and -inf make it NaN
        if not np.isfinite(total):
            self.timings.too_large += int(np.count_nonzero(~np.isfinite(inner)))
            np.nan_to_num(inner, copy=False)
        return inner

    def tiles(self, slab: Slab, unit: float, air: Air = NO_AIR) -> Tiles:
        """The tiles of a slab and which of them must run, given what ran before."""
        layout = self.layout
        finite: Slab = np.where(np.isfinite(slab), slab, np.float32(0))
        with np.errstate(over="ignore"):
            scaled: Slab = np.divide(finite, np.float32(unit), dtype=np.float32)
        padded = scaled[:, layout.rows.index][:, :, layout.columns.index]
        # (n, H, W) -> (n, H - tile + 1, W - tile + 1, tile, tile), a view
        windows: Slab = np.lib.stride_tricks.sliding_window_view(
            padded, (layout.tile, layout.tile), axis=(1, 2)
        )
        places = self._places(len(slab))
        constants = self._constants(windows, places)
        to_run = self._to_run(constants)
        to_run[self._air(windows, places, constants, unit, air)] = False
        return Tiles(windows, places, constants, to_run)

    def count(self, slab: Slab, unit: float, air: Air = NO_AIR) -> Tiles:
        """As `tiles`, and go on as though they had run: `run` would now skip the same."""
        tiles = self.tiles(slab, unit, air)
        self._promise(tiles)
        for value in self.promised - set(self.answers):
            self.answers[value] = NO_ANSWER
        return tiles

    def _promise(self, tiles: Tiles) -> None:
        """Note which constants will have an answer once these tiles have run."""
        for value, runs in zip(tiles.constants, tiles.to_run, strict=True):
            if runs and value is not None and len(self.promised) < MOST_CONSTANTS:
                self.promised.add(value)

    def examples(self, tiles: Tiles, most: int) -> Slab:
        """The first ``most`` tiles that are not constant, (n, tile, tile), divided by the unit."""
        chosen = [i for i, value in enumerate(tiles.constants) if value is None][: max(0, most)]
        return self.gather(tiles.windows, tiles.places[chosen])

    def _every_answer(self, tiles: Tiles, feed: "Feed") -> Iterator[tuple[NDArray[np.intp], Slab]]:
        """Place and answer (images, s*tile, s*tile) of each tile, in order."""
        for place, runs, value in zip(tiles.places, tiles.to_run, tiles.constants, strict=True):
            if runs:
                answer = feed.next_answer()
                if value is not None and len(self.answers) < MOST_CONSTANTS:
                    self.answers[value] = answer.copy()
            elif value is not None:
                answer = self.answers[value]
            else:
                (tile,) = self.gather(tiles.windows, place[None])
                answer = interpolated(tile, self.layout.scale)
            yield place, answer

    def _places(self, slices: int) -> Places:
        """Slice, row of tiles and column of tiles of each tile, (tiles, 3), in order."""
        counts = (slices, len(self.layout.rows.starts), len(self.layout.columns.starts))
        return np.indices(counts).reshape(3, -1).T

    def gather(self, windows: Slab, places: Places) -> Slab:
        """Tiles (N, tile, tile) at places."""
        rows = np.asarray(self.layout.rows.starts)[places[:, 1]]
        columns = np.asarray(self.layout.columns.starts)[places[:, 2]]
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
            tiles = self.gather(windows, places[chosen])
            bits = tiles.view(np.int32).reshape(len(tiles), -1)
            same = (bits == bits[:, :1]).all(axis=1)
            for index, value in zip(chosen[same], bits[same, 0], strict=True):
                values[index] = int(value)
        return values

    def _air(
        self, windows: Slab, places: Places, constants: list[int | None], unit: float, air: Air
    ) -> NDArray[np.intp]:
        """Indices of the tiles that are air, less the constant ones."""
        if not self.skip or air.most < 0:
            return np.empty(0, np.intp)
        seen = np.abs(self._probes(windows, places)).max(axis=0)
        unlike = np.array([value is None for value in constants])
        candidates = np.flatnonzero(unlike & (seen <= air.most / unit))
        parts = [candidates[i : i + LOOK_AT_ONCE] for i in range(0, len(candidates), LOOK_AT_ONCE)]
        found = [
            part[which_are_air(self.gather(windows, places[part]), unit, air)] for part in parts
        ]
        return np.concatenate(found) if found else candidates

    def _alike_at_probes(self, windows: Slab, places: Places) -> NDArray[np.intp]:
        """Indices of the tiles that could be constant: alike at corners and middle."""
        seen = self._probes(windows, places)
        return np.flatnonzero((seen == seen[0]).all(axis=0))

    def _probes(self, windows: Slab, places: Places) -> Slab:
        """Corners and middle of each tile, (5, tiles)."""
        rows = np.asarray(self.layout.rows.starts)[places[:, 1]]
        columns = np.asarray(self.layout.columns.starts)[places[:, 2]]
        last, middle = self.layout.tile - 1, self.layout.tile // 2
        probes = [(0, 0), (0, last), (last, 0), (last, last), (middle, middle)]
        return np.stack(
            [windows[places[:, 0], rows, columns, row, column] for row, column in probes]
        )

    def _to_run(self, constant: list[int | None]) -> NDArray[np.bool_]:
        """Which tiles must run: all but those whose constant has or will have an answer."""
        known = set(self.promised)
        runs = np.ones(len(constant), bool)
        for index, value in enumerate(constant):
            if value in known:
                runs[index] = False
            elif value is not None and len(known) < MOST_CONSTANTS:
                known.add(value)
        return runs

    def finished(self, count: int, batch: int, wait: Callable[[], Slab]) -> Slab:
        """The first ``count`` answers (count, images, s*tile, s*tile) of a batch, all finite."""
        side = self.layout.scale * self.layout.tile
        with self.timings.time("inference"):
            out = wait()
        expected = (batch, self.backend.images, side, side)
        if out.shape != expected:
            raise PoanError(
                f"the network answered shape {out.shape} to {batch} tiles of "
                f"{self.layout.tile}; expected {expected}"
            )
        if not np.isfinite(out).all():
            raise PoanError(
                "the network answered NaN or infinity to finite values; nothing was written "
                "(a half-precision model can overflow: try its fp32 file)"
            )
        return out[:count]

    def _add(self, fine: Slab, place: NDArray[np.intp], answer: Slab) -> None:
        layout, s = self.layout, self.layout.scale
        index, row, column = place
        top, left = s * layout.rows.starts[row], s * layout.columns.starts[column]
        side = s * layout.tile
        weights = layout.rows.weights[row][:, None] * layout.columns.weights[column]
        fine[:, index, top : top + side, left : left + side] += weights * answer


def count_air(tiles: Tiles) -> int:
    """How many of the tiles are interpolated."""
    skipped = np.flatnonzero(~tiles.to_run)
    return sum(tiles.constants[index] is None for index in skipped)


class Feed:
    """Keeps batches of a runner under way: tiles in, across the borders of slabs, answers out."""

    def __init__(self, runner: SliceRunner, works: Iterator[Work]) -> None:
        self._runner = runner
        self._begun: collections.deque[Work] = collections.deque()
        self._started: collections.deque[tuple[int, int, Callable[[], Slab]]] = collections.deque()
        self._ready: collections.deque[Slab] = collections.deque()
        self._batches = self._every_batch(works)

    def next_work(self) -> Work | None:
        """The next slab, of which some tiles may be under way; None after the last."""
        while not self._begun:
            if not self._start_one():
                break
        return self._begun.popleft() if self._begun else None

    def next_answer(self) -> Slab:
        """The next answer (images, s*tile, s*tile) to a tile that ran."""
        if not self._ready:
            self._top_up()
            self._ready.extend(self._runner.finished(*self._started.popleft()))
            self._top_up()
        return self._ready.popleft()

    def _top_up(self) -> None:
        while len(self._started) < self._runner.backend.in_flight and self._start_one():
            pass

    def _start_one(self) -> bool:
        """Start one more batch; whether there was one."""
        with self._runner.timings.time("tile"):
            found = next(self._batches, None)
        if found is None:
            return False
        count, tiles = found
        with self._runner.timings.time("inference"):
            # (N, tile, tile) -> (N, 1, tile, tile)
            self._started.append((count, len(tiles), self._runner.backend.start(tiles[:, None])))
        return True

    def _every_batch(self, works: Iterator[Work]) -> Iterator[tuple[int, Slab]]:
        """(tiles that count, batch). The last repeats its last tile where batches must be full."""
        batch = self._runner.layout.batch
        parts: list[Slab] = []
        missing = batch
        for work in works:
            self._begun.append(work)
            places = work.tiles.places[work.tiles.to_run]
            while len(places):
                parts.append(self._runner.gather(work.tiles.windows, places[:missing]))
                places, missing = places[missing:], missing - len(parts[-1])
                if not missing:
                    yield batch, parts[0] if len(parts) == 1 else np.concatenate(parts)
                    parts, missing = [], batch
        if parts:
            filler = [parts[-1][-1:]] * (missing if self._runner.backend.fills_batches else 0)
            yield batch - missing, np.concatenate([*parts, *filler])
