"""Plans of both flavours of TensorRT on an NVIDIA GPU.

Each calling thread has two lanes. A lane has a stream, an execution context, pinned host memory
and device memory of its own, so that while one lane computes, the other copies. What does not
need a GPU is tested against the real tensorrt-rtx library; the rest has tests marked ``gpu``.
"""

import collections
import contextlib
import dataclasses
import hashlib
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poan_runtime.engines.backend import LANES, Backend, EngineOptions, OpenedBackend, check_shapes
from poan_runtime.engines.tensorrt import cuda
from poan_runtime.engines.tensorrt.check import (
    check_compute_capability,
    check_header,
    check_version,
    engine_facts,
)
from poan_runtime.engines.tensorrt.library import Library, load_library
from poan_runtime.errors import PoanError
from poan_runtime.files import WholeFile, cache_folder
from poan_runtime.models.find import Model

Tiles = NDArray[np.float32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ports:
    """Names of the input and output, rows of the largest batch, and the shape of one row."""

    input: str
    output: str
    most: int
    row_in: tuple[int, ...]
    row_out: tuple[int, ...]


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
        self._stack = contextlib.ExitStack()
        self._context = context
        self._ports = ports
        self._stream = cuda.Stream(self._stack)
        self._in = cuda.Buffer((ports.most, *ports.row_in), self._stack)
        self._out = cuda.Buffer((ports.most, *ports.row_out), self._stack)
        self._graphs = graphs
        self._graph: cuda.Graph | None = None
        self._rows = 0
        self._waiting = False
        for name, buffer in ((ports.input, self._in), (ports.output, self._out)):
            if not context.set_tensor_address(name, buffer.device):
                raise PoanError(f"the engine takes no memory for its tensor {name!r}")

    def enqueue(self, batch: Tiles) -> None:
        """Start a batch of at most ``ports.most`` tiles; `result` waits for it."""
        self._stage(batch)
        if self._graph is not None:
            self._graph.launch()
        else:
            self._enqueue_all()
            if self._graphs:
                self._stream.wait()
                self._graph = cuda.Graph(self._stream, self._enqueue_all)
        self._waiting = True

    def result(self) -> Tiles:
        """The answer to the last batch, a copy."""
        self._stream.wait()
        self._waiting = False
        return self._out.host[: self._rows].copy()

    def timed(self, batch: Tiles) -> tuple[Tiles, StageTimes]:
        """Run one batch with an event between the stages."""
        self._stage(batch)
        start = self._stream.event()
        self._in.upload(self._rows, self._stream)
        uploaded = self._stream.event()
        before = time.perf_counter()
        self._execute()
        enqueue_ms = 1e3 * (time.perf_counter() - before)
        computed = self._stream.event()
        self._out.download(self._rows, self._stream)
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
        self._drop_graph()
        self._context = None
        self._stack.close()

    def _stage(self, batch: Tiles) -> None:
        """Put a batch into pinned memory and tell the context its shape."""
        if self._waiting:  # nobody asked for the last result
            self._stream.wait()
        if len(batch) != self._rows:
            self._drop_graph()  # a graph holds for the shape that it was captured with
            shape = (len(batch), *self._ports.row_in)
            if not self._context.set_input_shape(self._ports.input, shape):
                raise PoanError(f"the engine takes no batch of shape {shape}")
            self._rows = len(batch)
        self._in.host[: self._rows] = batch

    def _enqueue_all(self) -> None:
        self._in.upload(self._rows, self._stream)
        self._execute()
        self._out.download(self._rows, self._stream)

    def _execute(self) -> None:
        if not self._context.execute_async_v3(int(self._stream.handle)):
            raise PoanError("the engine refused to run a batch")

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._graph.release()
            self._graph = None


class Worker:
    """The lanes of one thread; they go when the thread does."""

    def __init__(self, lanes: list[Lane], home: cuda.Home) -> None:
        self.lanes = lanes
        self.release = weakref.finalize(self, _release, lanes, home)


def _release(lanes: list[Lane], home: cuda.Home) -> None:
    home.enter()
    for lane in lanes:
        lane.release()


class TensorRTBackend(Backend):
    """An engine; each calling thread gets contexts of its own. `close` frees everything."""

    def __init__(
        self, engine: Any, ports: Ports, cache: "KernelCache", home: cuda.Home, *, graphs: bool
    ) -> None:
        self._engine = engine
        self._ports = ports
        self._cache = cache
        self._home = home
        self._graphs = graphs
        self._mine = threading.local()
        self._lock = threading.Lock()
        self._releases: list[weakref.finalize[..., Worker]] = []
        self._save = weakref.finalize(self, cache.save)

    def run(self, batch: Tiles) -> Tiles:
        """See `Backend.run`. More tiles than the plan's largest batch run in several parts."""
        most = self._ports.most
        started: collections.deque[Callable[[], Tiles]] = collections.deque()
        answers = []
        for first in range(0, len(batch), most):
            if len(started) == LANES:
                answers.append(started.popleft()())
            started.append(self.start(batch[first : first + most]))
        return np.concatenate([*answers, *(wait() for wait in started)])

    def start(self, batch: Tiles) -> Callable[[], Tiles]:
        """Begin a batch; what is returned waits for the answer.

        A thread may have two batches under way: copies of one overlap with the computation of
        the other. The answer to an older one that nobody asked for is lost.
        """
        lanes = self._own_lanes()
        lane: Lane = lanes[self._mine.turn % len(lanes)]
        self._mine.turn += 1
        lane.enqueue(batch)
        return lane.result

    def timed(self, batch: Tiles) -> tuple[Tiles, StageTimes]:
        """One batch in one lane, with the time of each stage."""
        return self._own_lanes()[0].timed(batch)

    def close(self) -> None:
        """Keep the kernels that were compiled, then free contexts, memory and engine."""
        self._save()
        with self._lock:
            for release in self._releases:
                release()
            self._engine = None

    def _own_lanes(self) -> list[Lane]:
        """The lanes of the calling thread."""
        self._home.enter()
        if self._engine is None:
            raise ValueError("this engine is closed")
        if not hasattr(self._mine, "worker"):
            with self._lock:
                worker = Worker([self._lane() for _ in range(LANES)], self._home)
                self._releases.append(worker.release)
            self._mine.worker, self._mine.turn = worker, 0
        mine: Worker = self._mine.worker
        return mine.lanes

    def _lane(self) -> Lane:
        return Lane(self._cache.context(self._engine), self._ports, graphs=self._graphs)


class KernelCache:
    """Makes execution contexts. tensorrt-rtx compiles when it first runs: the kernels are kept.

    There is one file per plan, library and GPU in the user's cache folder; a file that does not
    fit is ignored by the library. tensorrt-rtx also captures CUDA graphs by itself.
    """

    def __init__(self, library: Library, gpu: cuda.Gpu, plan_sha256: str) -> None:
        self._library = library
        name = f"{plan_sha256}-{library.version}-{gpu.name}-{gpu.compute_capability}"
        key = hashlib.sha256(name.encode()).hexdigest()[:24]
        self.path = cache_folder() / f"{library.flavour}-{key}.kernels"
        self._settings: Any = None
        self._kernels: Any = None
        self._loaded = b""

    def context(self, engine: Any) -> Any:
        """A new execution context of the engine."""
        if self._library.flavour == "tensorrt-rtx":
            if self._settings is None:
                self._prepare(engine)
            context = engine.create_execution_context(self._settings)
        else:
            context = engine.create_execution_context()
        if context is None:
            raise PoanError(
                "the engine has no room to run on this GPU "
                f"({self._library.last_error()}); export it again with a smaller --vram"
            )
        return context

    def _prepare(self, engine: Any) -> None:
        self._settings = engine.create_runtime_config()
        strategies = self._library.api.CudaGraphStrategy
        self._settings.cuda_graph_strategy = strategies.WHOLE_GRAPH_CAPTURE
        self._kernels = self._settings.create_runtime_cache()
        if self.path.is_file():
            self._loaded = self.path.read_bytes()
            self._kernels.deserialize(self._loaded)
        self._settings.set_runtime_cache(self._kernels)

    def save(self) -> None:
        """Write the compiled kernels, if there are new ones.

        Where the folder cannot be written the next start is slower, and nothing else is lost.
        """
        if self._kernels is None:
            return
        kernels = bytes(self._kernels.serialize())
        if kernels != self._loaded:
            with contextlib.suppress(PoanError), WholeFile(self.path) as file:
                file.write(kernels)
            self._loaded = kernels


def open_backend(model: Model, options: EngineOptions) -> OpenedBackend:
    """Check and deserialise a plan on the current GPU; `NoGpuError` where there is none."""
    library = load_library(engine_facts(model).flavour)
    if options.backend not in ("auto", library.flavour):
        raise PoanError(
            f"--backend: expected {library.flavour}, which built {model.path}, "
            f"got {options.backend}"
        )
    check_version(model, library)
    check_header(model, library, gpu=False)
    gpu = cuda.find_gpu()
    check_compute_capability(model, gpu.name, gpu.compute_capability)
    notices = check_header(model, library, gpu=True)
    home = cuda.Home(gpu)
    home.enter()
    runtime = library.api.Runtime(library.logger)
    engine = runtime.deserialize_cuda_engine(model.path.read_bytes())
    if engine is None:
        raise PoanError(
            f"{model.path}: {library.flavour} cannot load it: {library.last_error()}; "
            "export it again"
        )
    ports = _ports(model, library, engine)
    cache = KernelCache(library, gpu, model.file.sha256)
    return OpenedBackend(
        backend=TensorRTBackend(engine, ports, cache, home, graphs=library.flavour == "tensorrt"),
        name=library.flavour,
        device=f"cuda:{gpu.index} ({gpu.name})",
        version=library.version,
        reason=f"the plan was built for this GPU ({gpu.compute_capability})",
        notices=notices,
    )


def _ports(model: Model, library: Library, engine: Any) -> Ports:
    """Input and output of the engine, which must be those that the manifest names."""
    manifest, api = model.manifest, library.api
    names = {
        mode: [
            name
            for name in map(engine.get_tensor_name, range(engine.num_io_tensors))
            if engine.get_tensor_mode(name) == mode
        ]
        for mode in (api.TensorIOMode.INPUT, api.TensorIOMode.OUTPUT)
    }
    expected = [[manifest.input_name], [manifest.output_name]]
    if list(names.values()) != expected:
        raise PoanError(f"{model.path}: expected tensors {expected}, got {[*names.values()]}")
    shape_in, shape_out = (
        list(engine.get_tensor_shape(name)) for name in (manifest.input_name, manifest.output_name)
    )
    check_shapes(model, shape_in, shape_out)
    for name in (manifest.input_name, manifest.output_name):
        if engine.get_tensor_dtype(name) != api.DataType.FLOAT:
            raise PoanError(f"{model.path}: expected float32 for {name!r}; export it again")
    _, _, most = engine.get_tensor_profile_shape(manifest.input_name, 0)
    return Ports(
        input=manifest.input_name,
        output=manifest.output_name,
        most=most[0],
        row_in=tuple(shape_in[1:]),
        row_out=tuple(shape_out[1:]),
    )
