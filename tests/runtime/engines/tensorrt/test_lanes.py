"""The backend's lanes on the host: twins of the tests in test_gpu.py.

CUDA's streams, memory and graphs are stood in for by host ones that do at once what a device
does later; the engine's context is a stand-in that repeats voxels. What is tested is this
project's own order of calls; that TensorRT and CUDA take these calls, test_gpu.py shows.
"""

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("cuda.bindings", reason="needs cuda-python")

from poan_runtime.engines.backend import LANES
from poan_runtime.engines.tensorrt import cuda
from poan_runtime.engines.tensorrt.backend import TensorRTBackend
from poan_runtime.engines.tensorrt.lanes import Lane
from poan_runtime.engines.tensorrt.ports import Ports
from poan_runtime.errors import PoanError
from tests.runtime.engines.conformance import check_backend

TILE, BATCH = 4, 3
SCRATCH = 640
PORTS = Ports(
    input="lr", output="sr", batch=BATCH, row_in=(1, TILE, TILE), row_out=(1, 2 * TILE, 2 * TILE)
)
Log = list[str]


class HostStream:
    """Everything is done at once."""

    def __init__(self, owner: ExitStack) -> None:
        self.handle = 7
        owner.callback(LOG.append, "stream released")

    def wait(self) -> None:
        LOG.append("wait")

    def event(self) -> "HostEvent":
        return HostEvent()


class HostEvent:
    def ms_until(self, later: "HostEvent") -> float:
        return 1.5

    def release(self) -> None:
        LOG.append("event released")


class HostMemory:
    """Counts what is taken; no more than `ROOM` lanes have room."""

    def __init__(self, size: int, what: str, owner: ExitStack) -> None:
        if LOG.count("memory taken") == ROOM[0]:
            raise cuda.OutOfMemoryError(f"too little memory: {what} need {size}, 0 are free")
        LOG.append("memory taken")
        self.address = 99
        owner.callback(LOG.append, "memory released")


class HostBuffer:
    """Device memory is a second array; addresses are found again by `MEMORY`."""

    def __init__(self, shape: tuple[int, ...], owner: ExitStack) -> None:
        self.host = np.full(shape, np.nan, np.float32)
        self.other = np.full(shape, np.nan, np.float32)
        self.device = id(self.other)
        MEMORY[self.device] = self.other
        owner.callback(LOG.append, "buffer released")

    def upload(self, stream: HostStream) -> None:
        self.other[:] = self.host

    def download(self, stream: HostStream) -> None:
        self.host[:] = self.other


class HostGraph:
    fails = False

    def __init__(self, stream: HostStream, enqueue: Callable[[], None]) -> None:
        if HostGraph.fails:
            raise cuda.CudaError("cudaStreamEndCapture: cudaErrorStreamCaptureInvalidated")
        LOG.append("captured")
        self._enqueue = enqueue

    def launch(self) -> None:
        LOG.append("launched")
        self._enqueue()

    def release(self) -> None:
        LOG.append("graph released")


class Repeats:
    """An execution context that repeats voxels of the rows that it was told of."""

    def __init__(self, *, takes: bool = True) -> None:
        self.addresses: dict[str, int] = {}
        self.rows = 0
        self.takes = takes

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.rows = shape[0]
        return self.takes and shape[1:] == PORTS.row_in

    def update_device_memory_size_for_shapes(self) -> int:
        return SCRATCH * self.rows

    def set_device_memory(self, memory: int, size: int) -> None:
        LOG.append(f"scratch {size} at {memory}")

    def execute_async_v3(self, stream: int) -> bool:
        source, target = (MEMORY[self.addresses[name]] for name in ("lr", "sr"))
        SEEN.append(source.copy())
        target[:] = source.repeat(2, 2).repeat(2, 3)
        return True


class Home:
    @contextmanager
    def entered(self) -> Iterator[None]:
        LOG.append("pushed")
        try:
            yield
        finally:
            LOG.append("popped")

    def leave(self) -> None:
        LOG.append("left")


class Contexts:
    """In place of the cache of kernels."""

    path = None

    def context(self, engine: Any) -> Repeats:
        return Repeats()

    def save(self) -> None:
        LOG.append("saved")


LOG: Log = []
SEEN: list[NDArray[np.float32]] = []
MEMORY: dict[int, NDArray[np.float32]] = {}
ROOM = [LANES]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, stand_in in (
        ("Stream", HostStream),
        ("Buffer", HostBuffer),
        ("Memory", HostMemory),
        ("Graph", HostGraph),
    ):
        monkeypatch.setattr(cuda, name, stand_in)
    monkeypatch.setattr(HostGraph, "fails", False)
    ROOM[0] = LANES
    for kept in (LOG, SEEN, MEMORY):
        kept.clear()


def backend(*, graphs: bool = False) -> TensorRTBackend:
    contexts: Any = Contexts()
    home: Any = Home()
    return TensorRTBackend(object(), PORTS, contexts, home, graphs=graphs)


def tiles(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((count, *PORTS.row_in), np.float32)


def fine(batch: NDArray[np.float32]) -> NDArray[np.float32]:
    return batch.repeat(2, 2).repeat(2, 3)


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("count", [1, BATCH, BATCH + 1, 5 * BATCH + 2])
def test_any_number_of_tiles_is_answered_in_order(graphs: bool, count: int, host: None) -> None:
    batch = tiles(count)
    assert np.array_equal(backend(graphs=graphs).run(batch), fine(batch))


def test_the_engine_sees_full_batches_alone(host: None) -> None:
    """One shape: one set of kernels, one graph. What is missing repeats the last tile."""
    batch = tiles(BATCH + 1)
    backend().run(batch)
    assert [len(seen) for seen in SEEN] == [BATCH, BATCH]
    assert np.array_equal(SEEN[1], batch[-1:].repeat(BATCH, axis=0))


def test_two_batches_under_way_keep_their_answers(host: None) -> None:
    engine = backend()
    first, second = tiles(2, seed=1), tiles(3, seed=2)
    waits = [engine.start(first), engine.start(second)]
    assert np.array_equal(waits[0](), fine(first))
    assert np.array_equal(waits[1](), fine(second))


def test_more_batches_than_lanes_are_started_and_none_is_lost(host: None) -> None:
    engine = backend()
    batches = [tiles(2, seed) for seed in range(3 * LANES)]
    waits = [engine.start(batch) for batch in batches]
    for wait, batch in reversed([*zip(waits, batches, strict=True)]):
        assert np.array_equal(wait(), fine(batch))
        assert np.array_equal(wait(), fine(batch))


def test_it_keeps_the_contract_of_an_engine(host: None) -> None:
    check_backend(backend(), tile=TILE, scale=2)


def test_a_graph_is_captured_once_after_a_first_run(host: None) -> None:
    """A context may allocate in its first run, which a capture does not allow."""
    lane = Lane(Repeats(), PORTS, graphs=True)
    LOG.clear()
    for count in (2, 2, 3, 1):
        batch = tiles(count, seed=count)
        lane.enqueue(batch)
        assert np.array_equal(lane.result(), fine(batch))
    assert [entry for entry in LOG if entry != "wait"] == ["captured", *["launched"] * 3]
    assert LOG[:2] == ["wait", "captured"]


def test_a_failed_capture_goes_on_without_a_graph_and_says_so_once(
    host: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HostGraph, "fails", True)
    engine = backend(graphs=True)
    engine.warm_up()
    for seed in range(4):
        assert np.array_equal(engine.run(tiles(2, seed)), fine(tiles(2, seed)))
    (notice,) = engine.notices
    assert "cudaErrorStreamCaptureInvalidated" in notice
    assert "launched" not in LOG


def test_a_lane_gives_the_context_memory_for_its_batch_and_no_more(host: None) -> None:
    lane = Lane(Repeats(), PORTS, graphs=False)
    assert ["memory taken", f"scratch {SCRATCH * BATCH} at 99"] == LOG
    lane.release()
    assert LOG[-4:] == [
        "memory released",
        "buffer released",
        "buffer released",
        "stream released",
    ]


def test_where_two_lanes_do_not_fit_one_goes_on(host: None) -> None:
    ROOM[0] = 1
    engine = backend()
    engine.warm_up()
    (notice,) = engine.notices
    assert notice.startswith("one batch at a time: too little memory: activations of a batch of 3")
    batches = [tiles(2, seed) for seed in range(4)]
    waits = [engine.start(batch) for batch in batches]
    assert all(np.array_equal(w(), fine(b)) for w, b in zip(waits, batches, strict=True))
    engine.close()
    assert LOG.count("buffer released") == 4  # the lane's, and those of the one that failed
    assert LOG.count("stream released") == 2


def test_no_room_at_all_is_one_line_and_nothing_leaks(host: None) -> None:
    ROOM[0] = 0
    with pytest.raises(PoanError, match="need 1920, 0 are free"):
        backend().run(tiles(1))
    assert LOG.count("buffer released") == 2
    assert LOG.count("stream released") == 1
    assert LOG.count("pushed") == LOG.count("popped")


def test_stages_are_timed_and_the_events_released(host: None) -> None:
    batch = tiles(2)
    answer, times = backend().timed(batch)
    assert np.array_equal(answer, fine(batch))
    assert (times.h2d_ms, times.compute_ms, times.d2h_ms) == (1.5, 1.5, 1.5)
    assert times.enqueue_ms > 0
    assert LOG.count("event released") == 4


def test_threads_share_the_lanes(host: None) -> None:
    engine = backend()
    answers: dict[int, bool] = {}

    def work(seed: int) -> None:
        batch = tiles(4, seed)
        answers[seed] = all(np.array_equal(engine.run(batch), fine(batch)) for _ in range(20))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert answers == dict.fromkeys(range(4), True)
    assert len(MEMORY) == 2 * LANES  # in and out of each lane


def test_the_callers_context_is_current_again_after_every_call(host: None) -> None:
    engine = backend(graphs=True)
    engine.run(tiles(BATCH + 1))
    engine.timed(tiles(1))
    engine.close()
    depth = 0
    for entry in LOG:
        depth += {"pushed": 1, "popped": -1}.get(entry, 0)
        assert entry not in ("captured", "launched", "buffer released") or depth > 0
    assert depth == 0
    assert LOG[-1] == "left"


def test_closing_saves_kernels_first_then_releases_and_no_batch_runs_after(host: None) -> None:
    engine = backend()
    engine.warm_up()
    LOG.clear()
    engine.close()
    assert LOG[:2] == ["pushed", "saved"]
    assert LOG.count("stream released") == LANES
    assert LOG.count("buffer released") == 2 * LANES
    engine.close()
    assert LOG.count("saved") == 1
    with pytest.raises(ValueError, match="this engine is closed"):
        engine.run(tiles(1))


def test_an_engine_that_nobody_holds_frees_its_memory(host: None) -> None:
    engine = backend()
    engine.run(tiles(1))
    del engine
    gc.collect()
    assert LOG.count("stream released") == 1


def test_a_shape_that_the_engine_does_not_take_is_named(host: None) -> None:
    with pytest.raises(PoanError, match=r"the engine takes no batch of shape \(3, 1, 4, 4\)"):
        Lane(Repeats(takes=False), PORTS, graphs=False)
    assert LOG.count("stream released") == 1


def test_a_capture_that_failed_is_not_tried_again(
    host: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[object] = []

    def fails(*arguments: object) -> None:
        tries.append(arguments)
        raise cuda.CudaError("cudaStreamEndCapture: cudaErrorStreamCaptureInvalidated")

    monkeypatch.setattr(cuda, "Graph", fails)
    lane = Lane(Repeats(), PORTS, graphs=True)
    for _ in range(3):
        lane.enqueue(tiles(BATCH))
    assert len(tries) == 1
