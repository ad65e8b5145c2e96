"""Slabs through networks: identity, halos, constant tiles, self-ensemble."""

import dataclasses
import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poan_runtime.engines.backend import LANES, Backend
from poan_runtime.errors import PoanError
from poan_runtime.tiles.air import NO_AIR, Air
from poan_runtime.tiles.layout import Layout, lay_out
from poan_runtime.tiles.run import MOST_CONSTANTS, SliceRunner, Timings
from poan_runtime.tiles.volume import run_volume

Array = np.ndarray


class Repeat(Backend):
    """Repeats each voxel ``scale`` times: the identity of super-resolution."""

    def __init__(self, scale: int) -> None:
        self.scale = scale
        self.batches: list[int] = []

    def run(self, batch: Array) -> Array:
        self.batches.append(len(batch))
        return batch.repeat(self.scale, 2).repeat(self.scale, 3)


class Blur(Backend):
    """Sum of the 3x3 zero-padded neighbourhood, then repeated: the border of a tile is wrong."""

    def __init__(self, scale: int) -> None:
        self.scale = scale

    def run(self, batch: Array) -> Array:
        padded = np.pad(batch, [(0, 0), (0, 0), (1, 1), (1, 1)])
        height, width = batch.shape[2:]
        shifted = [padded[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        total = sum(shifted[1:], start=shifted[0])  # in one order, whatever the batch
        return total.repeat(self.scale, 2).repeat(self.scale, 3)


def plan(
    shape: tuple[int, int, int],
    tile: int,
    scale: int = 2,
    halo: int = 0,
    overlap: int = 0,
    batch: int = 3,
) -> Layout:
    return lay_out(
        shape[1],
        shape[2],
        shape[0],
        tile=tile,
        scale=scale,
        halo=halo,
        overlap=overlap,
        batch=batch,
        best_batch=8,
        most_batch=32,
    )


def run(backend: Any, slab: Array, layout: Layout, skip: bool = True, scale: float = 1.0) -> Array:
    runner = SliceRunner(backend=backend, layout=layout, skip=skip, timings=Timings())
    return runner.run(slab, scale)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Array, Layout]:
    """A slab and a plan for it."""
    tile = draw(st.integers(1, 12))
    halo = draw(st.integers(0, (tile - 1) // 2))
    overlap = draw(st.integers(0, tile - 1 - 2 * halo))
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 30), st.integers(1, 30)))
    seed = draw(st.integers(0, 9))
    slab = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    slab[:, : shape[1] // 2] = draw(st.sampled_from([0.0, 5.0]))
    batch = draw(st.integers(1, 9))
    return slab, plan(shape, tile, draw(st.integers(1, 3)), halo, overlap, batch)


@given(layouts(), st.booleans(), st.sampled_from([1.0, 300.0]))
def test_an_identity_network_returns_the_volume_through_any_tiling(
    layout: tuple[Array, Layout], skip: bool, scale: float
) -> None:
    slab, its_plan = layout
    out = run(Repeat(its_plan.scale), slab, its_plan, skip, scale)
    expected = slab.repeat(its_plan.scale, 1).repeat(its_plan.scale, 2)
    # Dividing, up to four rounded weights and their products, multiplying: under 8 roundings.
    np.testing.assert_allclose(out, expected, rtol=8 * 6e-8, atol=0)


@given(layouts())
def test_skipping_constant_tiles_changes_no_bit(layout: tuple[Array, Layout]) -> None:
    slab, its_plan = layout
    skipped = run(Blur(its_plan.scale), slab, its_plan, skip=True)
    ran = run(Blur(its_plan.scale), slab, its_plan, skip=False)
    assert skipped.tobytes() == ran.tobytes()


def test_a_constant_is_run_once_and_other_tiles_fill_the_batches() -> None:
    slab = np.zeros((4, 16, 16), np.float32)
    slab[3, :8] = np.random.default_rng(0).normal(size=(8, 16))
    backend = Repeat(2)
    timings = Timings()
    runner = SliceRunner(
        backend=backend, layout=plan(slab.shape, tile=4, batch=5), skip=True, timings=timings
    )
    runner.run(slab, 1.0)
    assert (timings.tiles_run, timings.tiles_skipped) == (8 + 1, 64 - 9)
    assert backend.batches == [5, 5]
    runner.run(np.zeros_like(slab), 1.0)
    assert timings.tiles_run == 9


@given(layouts(), st.integers(1, 3), st.booleans())
def test_counting_tells_what_a_run_would_do(
    layout: tuple[Array, Layout], slabs: int, skip: bool
) -> None:
    slab, its_layout = layout
    slab[-1, :, :2] = np.where(slab[-1, :, :2] > 0, 0.0, -0.0)
    parts = [slab] * slabs
    timings = Timings()
    ran = SliceRunner(
        backend=Repeat(its_layout.scale), layout=its_layout, skip=skip, timings=timings
    )
    counted = dataclasses.replace(ran, timings=Timings(), answers={}, promised=set())
    foreseen = sum(int(counted.count(part, 1.0).to_run.sum()) for part in parts)
    for part in parts:
        ran.run(part, 1.0)
    assert foreseen == timings.tiles_run
    assert counted.timings.tiles_run == 0


def test_minus_zero_is_a_constant_of_its_own() -> None:
    slab = np.zeros((1, 4, 8), np.float32)
    slab[:, :, 4:] = -0.0
    out = run(Repeat(1), slab, plan(slab.shape, tile=4, scale=1))
    assert not np.signbit(out[..., :4]).any()
    backend = Repeat(1)
    run(backend, slab, plan(slab.shape, tile=4, scale=1, batch=2))
    assert backend.batches == [2]


def test_more_constants_than_are_kept_still_give_the_right_answer() -> None:
    count = MOST_CONSTANTS + 20
    slab = np.arange(count, dtype=np.float32).repeat(4).reshape(count, 2, 2)
    slab = np.concatenate([slab, slab])
    out = run(Repeat(2), slab, plan(slab.shape, tile=2))
    assert np.array_equal(out, slab.repeat(2, 1).repeat(2, 2))


def test_a_halo_as_wide_as_the_kernel_makes_tiles_equal_to_the_whole_slice() -> None:
    slab = np.random.default_rng(3).uniform(size=(2, 20, 23)).astype(np.float32)
    whole = Blur(2).run(slab[:, None])[:, 0]
    tiled = run(Blur(2), slab, plan(slab.shape, tile=8, halo=1, overlap=2))
    # Sums of nine values below one in another order: a few float32 roundings of 9.
    np.testing.assert_allclose(tiled, whole, rtol=0, atol=4e-6)
    without = run(Blur(2), slab, plan(slab.shape, tile=8, halo=0, overlap=2))
    assert np.abs(without - whole).max() > 0.5


def test_values_that_are_not_finite_count_as_zero() -> None:
    slab = np.ones((1, 4, 4), np.float32)
    slab[0, 0, :3] = np.nan, np.inf, -np.inf
    out = run(Repeat(1), slab, plan(slab.shape, tile=4, scale=1))
    assert out[0, 0].tolist() == [0, 0, 0, 1]


def test_a_result_beyond_float32_on_both_sides_is_cut_and_counted_without_a_warning() -> None:
    slab = np.zeros((1, 4, 4), np.float32)
    slab[0, 0, :3] = 1, -1, 0.25
    layout = plan(slab.shape, tile=4, scale=1)
    timings = Timings()
    backend = Answers(np.stack([4 * slab] * 3))
    runner = SliceRunner(backend=backend, layout=layout, skip=False, timings=timings)
    out = runner.run(slab, 1e38)
    most = float(np.finfo(np.float32).max)
    assert out[0, 0].tolist() == [most, -most, float(np.float32(1e38)), 0]
    assert timings.too_large == 2


class OddOnes(Blur):
    """Answers a lone tile a little differently, as ONNX Runtime's matrix products do."""

    def run(self, batch: Array) -> Array:
        return super().run(batch) * np.float32(1.0001 if len(batch) == 1 else 1)


@pytest.mark.parametrize("batch", [1, 4])
def test_skipping_changes_no_bit_where_a_lone_tile_is_answered_differently(batch: int) -> None:
    slab = np.zeros((1, 8, 12), np.float32)
    slab[0, 5, 5] = 1
    layout = plan(slab.shape, tile=4, batch=batch)
    skipped = run(OddOnes(2), slab, layout, skip=True)
    assert skipped.tobytes() == run(OddOnes(2), slab, layout, skip=False).tobytes()


class Answers(Backend):
    """Answers always the same."""

    def __init__(self, answer: Array) -> None:
        self.answer = answer

    def run(self, batch: Array) -> Array:
        return self.answer


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (np.full((3, 1, 8, 8), np.nan, np.float32), "NaN or infinity"),
        (np.full((3, 1, 8, 8), np.inf, np.float32), "NaN or infinity"),
        (np.zeros((3, 1, 4, 4), np.float32), r"answered shape \(3, 1, 4, 4\)"),
    ],
)
def test_an_answer_of_nan_or_of_another_shape_is_refused(answer: Array, message: str) -> None:
    slab = np.ones((1, 4, 4), np.float32)
    with pytest.raises(PoanError, match=message):
        run(Answers(answer), slab, plan(slab.shape, tile=4))


def test_slabs_are_read_once_and_come_in_order() -> None:
    volume = np.random.default_rng(0).normal(size=(7, 5, 5)).astype(np.float32)
    layout = plan(volume.shape, tile=4)
    layout = Layout(**{**vars(layout), "slab": 3})
    runner = SliceRunner(backend=Repeat(2), layout=layout, skip=True, timings=Timings())
    reads: list[tuple[int, int]] = []

    def read(start: int, stop: int) -> Array:
        reads.append((start, stop))
        return volume[start:stop]

    slabs = list(run_volume(runner, slices=7, unit=1.0, read=read))
    assert reads == [(0, 3), (3, 6), (6, 7)]
    assert [start for start, _, _ in slabs] == [0, 3, 6]
    assert np.array_equal(np.concatenate([lr for _, lr, _ in slabs]), volume)
    out = np.concatenate([sr for _, _, (sr,) in slabs])
    np.testing.assert_allclose(out, volume.repeat(2, 1).repeat(2, 2), rtol=8 * 6e-8)


def test_batches_are_filled_across_slabs_and_only_the_last_is_not_full() -> None:
    """An engine that waits at the end of each slab idles there."""
    volume = np.random.default_rng(0).normal(size=(7, 4, 8)).astype(np.float32)  # 2 tiles a slice
    layout = Layout(**{**vars(plan(volume.shape, tile=4, batch=4)), "slab": 1})
    backend = Repeat(2)
    runner = SliceRunner(backend=backend, layout=layout, skip=True, timings=Timings())
    slabs = run_volume(runner, slices=7, unit=1.0, read=lambda start, stop: volume[start:stop])
    out = np.concatenate([sr for _, _, (sr,) in slabs])
    assert np.array_equal(out, volume.repeat(2, 1).repeat(2, 2))
    assert backend.batches == [4, 4, 4, 4]  # 14 tiles, of which the last is repeated twice
    assert runner.timings.tiles_run == 14


def test_a_constant_runs_once_though_the_next_slab_is_cut_before_it_is_answered() -> None:
    volume = np.zeros((6, 4, 4), np.float32)
    layout = Layout(**{**vars(plan(volume.shape, tile=4, batch=1)), "slab": 1})
    backend = Repeat(2)
    runner = SliceRunner(backend=backend, layout=layout, skip=True, timings=Timings())
    read = lambda start, stop: volume[start:stop]  # noqa: E731
    assert len(list(run_volume(runner, slices=6, unit=1.0, read=read))) == 6
    assert backend.batches == [1]
    assert (runner.timings.tiles_run, runner.timings.tiles_skipped) == (1, 5)


def with_turn(turn: threading.Lock, backend: Backend, reads: list[int]) -> Any:
    """A volume of three slabs, whose run needs the turn."""
    volume = np.random.default_rng(0).normal(size=(3, 4, 4)).astype(np.float32)
    layout = Layout(**{**vars(plan(volume.shape, tile=4, batch=1)), "slab": 1})
    runner = SliceRunner(backend=backend, layout=layout, skip=True, timings=Timings())

    def read(start: int, stop: int) -> Array:
        reads.append(start)
        return volume[start:stop]

    return run_volume(runner, slices=3, unit=1.0, read=read, turn=turn)


def test_the_first_slab_is_read_while_another_run_has_the_engine() -> None:
    turn, backend, reads = threading.Lock(), Repeat(2), list[int]()
    with turn:
        waiting = threading.Thread(target=list, args=(with_turn(turn, backend, reads),))
        waiting.start()
        for _ in range(6000):
            if reads:
                break
            time.sleep(0.01)
        assert reads
        assert backend.batches == []
    waiting.join(timeout=60)
    assert backend.batches == [1, 1, 1]


def test_the_engine_is_free_while_the_last_slab_is_looked_at() -> None:
    turn = threading.Lock()
    slabs = with_turn(turn, Repeat(2), [])
    for _ in range(3):
        next(slabs)
    assert turn.acquire(timeout=60)


def test_who_stops_looking_frees_the_engine() -> None:
    turn = threading.Lock()
    slabs = with_turn(turn, Repeat(2), [])
    next(slabs)
    slabs.close()
    assert turn.acquire(blocking=False)


def test_who_stops_looking_stops_the_run() -> None:
    volume = np.random.default_rng(0).normal(size=(50, 4, 4)).astype(np.float32)
    layout = Layout(**{**vars(plan(volume.shape, tile=4, batch=1)), "slab": 1})
    backend = Repeat(2)
    runner = SliceRunner(backend=backend, layout=layout, skip=True, timings=Timings())
    slabs = run_volume(runner, slices=50, unit=1.0, read=lambda start, stop: volume[start:stop])
    next(slabs)
    slabs.close()
    assert len(backend.batches) < 10  # a slab ahead, and the batches under way


def test_an_error_of_the_reader_ends_the_run() -> None:
    runner = SliceRunner(
        backend=Repeat(2), layout=plan((1, 4, 4), tile=4), skip=True, timings=Timings()
    )

    def fail(start: int, stop: int) -> Array:
        raise PoanError("read failed")

    with pytest.raises(PoanError, match="read failed"):
        list(run_volume(runner, slices=1, unit=1.0, read=fail))


def test_a_slab_is_cut_into_tiles_in_the_readers_thread() -> None:
    """Beside the engine, and not between two batches of it."""
    cut: list[str] = []

    class Watched(SliceRunner):
        def tiles(self, slab: Array, unit: float, air: Air = NO_AIR) -> Any:
            cut.append(threading.current_thread().name)
            return super().tiles(slab, unit, air)

    volume = np.random.default_rng(0).normal(size=(3, 4, 4)).astype(np.float32)
    layout = Layout(**{**vars(plan(volume.shape, tile=4, batch=1)), "slab": 1})
    runner = Watched(backend=Repeat(2), layout=layout, skip=True, timings=Timings())
    read = lambda start, stop: volume[start:stop]  # noqa: E731
    assert len(list(run_volume(runner, slices=3, unit=1.0, read=read))) == 3
    assert cut == ["poan-read_0"] * 3


class UnderWay(Repeat):
    """Counts the batches that were begun and not yet asked for."""

    def __init__(self) -> None:
        super().__init__(2)
        self.count = [0]

    def start(self, batch: Array) -> Any:
        self.count.append(self.count[-1] + 1)

        def wait() -> Array:
            self.count.append(self.count[-1] - 1)
            return self.run(batch)

        return wait


def test_as_many_batches_are_under_way_as_the_engine_has_lanes() -> None:
    """So that the copies of one overlap with the computation of another."""
    volume = np.random.default_rng(0).normal(size=(6, 4, 4)).astype(np.float32)
    layout = plan(volume.shape, tile=4, batch=1)
    for lanes in (LANES, 3):
        engine = UnderWay()
        engine.in_flight = lanes
        out = run(engine, volume, layout)
        assert np.array_equal(out, volume.repeat(2, 1).repeat(2, 2))
        assert (max(engine.count), engine.count[-1]) == (lanes, 0)
