"""The backend's lanes on the host: twins of the tests in test_gpu.py.

CUDA's streams, memory and graphs are stood in for by host ones that do at once what a device
does later; the engine's context is a stand-in that repeats voxels. What is tested is this
project's own order of calls; that TensorRT and CUDA take these calls, test_gpu.py shows.
"""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("cuda.bindings", reason="needs cuda-python")

from poan_runtime.engines.tensorrt import backend as tensorrt_backend
from poan_runtime.engines.tensorrt import cuda
from poan_runtime.engines.tensorrt.backend import Lane, Ports, TensorRTBackend
from poan_runtime.errors import PoanError
from tests.runtime.engines.conformance import check_backend

TILE, MOST = 4, 3
PORTS = Ports(
    input="lr", output="sr", most=MOST, row_in=(1, TILE, TILE), row_out=(1, 2 * TILE, 2 * TILE)
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


class HostBuffer:
    """Device memory is a second array; addresses are found again by `MEMORY`."""

    def __init__(self, shape: tuple[int, ...], owner: ExitStack) -> None:
        self.host = np.full(shape, np.nan, np.float32)
        self.other = np.full(shape, np.nan, np.float32)
        self.device = id(self.other)
        MEMORY[self.device] = self.other
        owner.callback(LOG.append, "buffer released")

    def upload(self, rows: int, stream: HostStream) -> None:
        self.other[:rows] = self.host[:rows]

    def download(self, rows: int, stream: HostStream) -> None:
        self.host[:rows] = self.other[:rows]


class HostGraph:
    def __init__(self, stream: HostStream, enqueue: Callable[[], None]) -> None:
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
        LOG.append(f"shape {shape[0]}")
        self.rows = shape[0]
        return self.takes and shape[1:] == PORTS.row_in

    def execute_async_v3(self, stream: int) -> bool:
        source, target = (MEMORY[self.addresses[name]] for name in ("lr", "sr"))
        target[: self.rows] = source[: self.rows].repeat(2, 2).repeat(2, 3)
        return True


class Home:
    def enter(self) -> None:
        LOG.append("home")


class Contexts:
    """In place of the cache of kernels."""

    path = None

    def context(self, engine: Any) -> Repeats:
        return Repeats()

    def save(self) -> None:
        LOG.append("saved")


LOG: Log = []
MEMORY: dict[int, NDArray[np.float32]] = {}


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, stand_in in (
        ("Stream", HostStream),
        ("Buffer", HostBuffer),
        ("Graph", HostGraph),
    ):
        monkeypatch.setattr(cuda, name, stand_in)
    LOG.clear()
    MEMORY.clear()


def backend(*, graphs: bool = False) -> TensorRTBackend:
    contexts: Any = Contexts()
    home: Any = Home()
    return TensorRTBackend(object(), PORTS, contexts, home, graphs=graphs)


def tiles(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((count, *PORTS.row_in), np.float32)


def fine(batch: NDArray[np.float32]) -> NDArray[np.float32]:
    return batch.repeat(2, 2).repeat(2, 3)


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("count", [1, MOST, MOST + 1, 5 * MOST + 2])
def test_any_number_of_tiles_is_answered_in_order(graphs: bool, count: int, host: None) -> None:
    batch = tiles(count)
    assert np.array_equal(backend(graphs=graphs).run(batch), fine(batch))


def test_two_batches_under_way_keep_their_answers(host: None) -> None:
    engine = backend()
    first, second = tiles(2, seed=1), tiles(3, seed=2)
    waits = [engine.start(first), engine.start(second)]
    assert np.array_equal(waits[0](), fine(first))
    assert np.array_equal(waits[1](), fine(second))


def test_it_keeps_the_contract_of_an_engine(host: None) -> None:
    check_backend(backend(), tile=TILE, scale=2)


def test_a_graph_is_captured_once_per_shape_and_dropped_with_it(host: None) -> None:
    lane = Lane(Repeats(), PORTS, graphs=True)
    for count in (2, 2, 2, 3, 3):
        batch = tiles(count, seed=count)
        lane.enqueue(batch)
        assert np.array_equal(lane.result(), fine(batch))
    kept = [entry for entry in LOG if entry not in ("wait", "home")]
    first = ["shape 2", "captured", "launched", "launched"]
    assert kept == [*first, "graph released", "shape 3", "captured", "launched"]


def test_the_first_batch_of_a_shape_runs_before_the_capture(host: None) -> None:
    """A context may allocate in its first run, which a capture does not allow."""
    lane = Lane(Repeats(), PORTS, graphs=True)
    lane.enqueue(tiles(1))
    assert LOG == ["shape 1", "wait", "captured"]


def test_a_lane_waits_before_it_overwrites_what_nobody_asked_for(host: None) -> None:
    lane = Lane(Repeats(), PORTS, graphs=False)
    lane.enqueue(tiles(1))
    LOG.clear()
    lane.enqueue(tiles(1, seed=1))
    assert LOG == ["wait"]


def test_stages_are_timed_and_the_events_released(host: None) -> None:
    batch = tiles(2)
    answer, times = backend().timed(batch)
    assert np.array_equal(answer, fine(batch))
    assert (times.h2d_ms, times.compute_ms, times.d2h_ms) == (1.5, 1.5, 1.5)
    assert times.enqueue_ms > 0
    assert LOG.count("event released") == 4


def test_each_thread_has_lanes_of_its_own(host: None) -> None:
    engine = backend()
    answers: dict[int, bool] = {}

    def work(seed: int) -> None:
        batch = tiles(4, seed)
        answers[seed] = all(np.array_equal(engine.run(batch), fine(batch)) for _ in range(20))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == dict.fromkeys(range(4), True)
    assert len(MEMORY) == 4 * tensorrt_backend.LANES * 2  # in and out of each lane


def test_lanes_of_a_thread_that_ended_are_released(host: None) -> None:
    engine = backend()
    thread = threading.Thread(target=lambda: engine.run(tiles(1)))
    thread.start()
    thread.join()
    assert LOG.count("buffer released") == 2 * tensorrt_backend.LANES
    assert np.array_equal(engine.run(tiles(1)), fine(tiles(1)))


def test_closing_saves_kernels_first_then_releases_and_no_batch_runs_after(host: None) -> None:
    engine = backend()
    engine.run(tiles(1))
    LOG.clear()
    engine.close()
    assert LOG[0] == "saved"
    assert LOG.count("stream released") == tensorrt_backend.LANES
    assert LOG.count("buffer released") == 2 * tensorrt_backend.LANES
    engine.close()
    assert LOG.count("saved") == 1
    with pytest.raises(ValueError, match="this engine is closed"):
        engine.run(tiles(1))


def test_a_shape_that_the_engine_does_not_take_is_named(host: None) -> None:
    lane = Lane(Repeats(takes=False), PORTS, graphs=False)
    with pytest.raises(PoanError, match=r"the engine takes no batch of shape \(2, 1, 4, 4\)"):
        lane.enqueue(tiles(2))
