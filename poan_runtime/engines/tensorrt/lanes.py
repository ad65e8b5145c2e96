"""Lanes of an engine: each with a stream, a context and memory, so that copies overlap with work.

A lane always runs the batch that it was made for. Fewer tiles are filled up with the last one:
one shape means one set of kernels, one captured graph and memory of one size.
"""

import collections
import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any

from poan_runtime.engines.backend import Tiles
from poan_runtime.engines.tensorrt import cuda
from poan_runtime.engines.tensorrt.ports import Ports
from poan_runtime.errors import PoanError


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageTimes:
    """One batch, stage by stage; enqueue is host time, the others are device time."""

    enqueue_ms: float
    h2d_ms: float
    compute_ms: float
    d2h_ms: float


class Lane:
    """A stream, a context and memory; one batch at a time."""

    def __init__(self, context: Any, ports: Ports, *, graphs: bool) -> None:
        self.notice = ""
        self._context = context
        self._ports = ports
        self._graphs = graphs
        self._graph: cuda.Graph | None = None
        self._rows = 0
        with contextlib.ExitStack() as stack:
            self._stream = cuda.Stream(stack)
            self._in = cuda.Buffer((ports.batch, *ports.row_in), stack)
            self._out = cuda.Buffer((ports.batch, *ports.row_out), stack)
            self._bind(stack)
            self._stack = stack.pop_all()  # nothing leaks from a lane that is half made

    def enqueue(self, batch: Tiles) -> None:
        """Start at most ``ports.batch`` tiles; `result` waits for them."""
        self._stage(batch)
        if self._graph is not None:
            self._graph.launch()
            return
        self._enqueue_all()
        if self._graphs:
            self._capture()

    def result(self) -> Tiles:
        """The answer to the last batch, a copy."""
        self._stream.wait()
        return self._out.host[: self._rows].copy()

    def timed(self, batch: Tiles) -> tuple[Tiles, StageTimes]:
        """Run one batch with an event between the stages."""
        self._stage(batch)
        start = self._stream.event()
        self._in.upload(self._stream)
        uploaded = self._stream.event()
        before = time.perf_counter()
        self._execute()
        enqueue_ms = 1e3 * (time.perf_counter() - before)
        computed = self._stream.event()
        self._out.download(self._stream)
        end = self._stream.event()
        answer = self.result()
        times = StageTimes(
            enqueue_ms=enqueue_ms,
            h2d_ms=start.ms_until(uploaded),
            compute_ms=uploaded.ms_until(computed),
            d2h_ms=computed.ms_until(end),
        )
        for event in (start, uploaded, computed, end):
            event.release()
        return answer, times

    def release(self) -> None:
        """Free graph, context, memory and stream, in this order."""
        self._stream.wait()
        if self._graph is not None:
            self._graph.release()
            self._graph = None
        self._context = None
        self._stack.close()

    def _bind(self, owner: contextlib.ExitStack) -> None:
        """Tell the context its shape, its tensors' memory and its scratch memory."""
        ports, context = self._ports, self._context
        shape = (ports.batch, *ports.row_in)
        if not context.set_input_shape(ports.input, shape):
            raise PoanError(f"the engine takes no batch of shape {shape}")
        for name, buffer in ((ports.input, self._in), (ports.output, self._out)):
            if not context.set_tensor_address(name, buffer.device):
                raise PoanError(f"the engine takes no memory for its tensor {name!r}")
        size = context.update_device_memory_size_for_shapes()
        scratch = cuda.Memory(size, f"activations of a batch of {ports.batch}", owner)
        if size:
            context.set_device_memory(scratch.address, size)

    def _stage(self, batch: Tiles) -> None:
        """Put a batch into pinned memory, the last tile repeated to the end."""
        self._rows = len(batch)
        self._in.host[: self._rows] = batch
        self._in.host[self._rows :] = batch[-1]

    def _capture(self) -> None:
        """Keep what was enqueued as a graph; where that fails, go on without one and say so.

        The batch itself has run: a context may allocate in its first run, which no capture allows.
        """
        self._stream.wait()
        try:
            self._graph = cuda.Graph(self._stream, self._enqueue_all)
        except (cuda.CudaError, PoanError) as error:
            self._graphs = False
            self.notice = f"no CUDA graph, each batch is launched kernel by kernel: {error}"

    def _enqueue_all(self) -> None:
        self._in.upload(self._stream)
        self._execute()
        self._out.download(self._stream)

    def _execute(self) -> None:
        if not self._context.execute_async_v3(int(self._stream.handle)):
            raise PoanError("the engine refused to run a batch")


class Ticket:
    """A batch under way; its answer is fetched once, by who asks or by who needs the lane."""

    def __init__(self, lane: Lane, fetch: Callable[[Lane], Tiles]) -> None:
        self._lock = threading.Lock()
        self._lane: Lane | None = lane
        self._fetch = fetch
        self._answer: Tiles

    def wait(self) -> Tiles:
        """The answer."""
        with self._lock:
            if self._lane is not None:
                lane, self._lane = self._lane, None
                self._answer = self._fetch(lane)
            return self._answer


def _closed() -> Lane:
    raise ValueError("this engine is closed")


class LanePool:
    """At most ``most`` lanes, shared by all threads and made as they are needed.

    Who comes when all lanes work waits for the oldest batch, whose answer is kept for its owner.
    Where the GPU has no room for another lane, the ones that there are go on.
    """

    def __init__(self, make: Callable[[], Lane], home: cuda.Home, most: int) -> None:
        self._make = make
        self._home = home
        self._most = most
        self._changed = threading.Condition()
        self._lanes: list[Lane] = []
        self._idle: list[Lane] = []
        self._under_way: collections.deque[Ticket] = collections.deque()
        self._no_room = ""

    @property
    def notices(self) -> tuple[str, ...]:
        """What the lanes had to do without, each once."""
        found = [self._no_room, *(lane.notice for lane in self._lanes)]
        return tuple(dict.fromkeys(notice for notice in found if notice))

    def start(self, batch: Tiles) -> Callable[[], Tiles]:
        """Begin a batch; what is returned waits for the answer."""
        lane = self._take()
        try:
            with self._home.entered():
                lane.enqueue(batch)
        except BaseException:
            self._give(lane)
            raise
        ticket = Ticket(lane, self._fetch)
        with self._changed:
            self._under_way.append(ticket)
            self._changed.notify()
        return ticket.wait

    def timed(self, batch: Tiles) -> tuple[Tiles, StageTimes]:
        """One batch in one lane, with the time of each stage."""
        lane = self._take()
        try:
            with self._home.entered():
                return lane.timed(batch)
        finally:
            self._give(lane)

    def fill(self) -> None:
        """Make every lane now, as far as there is room."""
        with self._changed:
            while (lane := self._another()) is not None:
                self._idle.append(lane)

    def release(self) -> None:
        """Free all lanes; none is made afterwards."""
        with self._changed, self._home.entered():
            while self._lanes:
                self._lanes.pop().release()
            self._idle.clear()
            self._under_way.clear()
            self._make = _closed

    def _take(self) -> Lane:
        while True:
            with self._changed:
                if self._idle:
                    return self._idle.pop()
                lane = self._another()
                if lane is not None:
                    return lane
                if not self._under_way:
                    self._changed.wait()
                    continue
                oldest = self._under_way.popleft()
            oldest.wait()

    def _another(self) -> Lane | None:
        """A new lane; None where there are enough, or no room for more than there are."""
        if len(self._lanes) == self._most:
            return None
        try:
            with self._home.entered():
                lane = self._make()
        except cuda.OutOfMemoryError as error:
            if not self._lanes:
                raise
            self._most = len(self._lanes)
            self._no_room = f"one batch at a time: {error}"
            return None
        self._lanes.append(lane)
        return lane

    def _give(self, lane: Lane) -> None:
        with self._changed:
            if lane in self._lanes:
                self._idle.append(lane)
            self._changed.notify()

    def _fetch(self, lane: Lane) -> Tiles:
        try:
            with self._home.entered():
                return lane.result()
        finally:
            self._give(lane)
