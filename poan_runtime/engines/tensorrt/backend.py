"""Plans of both flavours of TensorRT on an NVIDIA GPU.

Two lanes, shared by all threads, so that while one computes, the other copies. What does not
need a GPU is tested against the real tensorrt-rtx library; the rest has tests marked ``gpu``.
"""

import collections
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from poan_runtime.engines.backend import LANES, Backend, EngineOptions, OpenedBackend, Tiles
from poan_runtime.engines.nvidia import Gpu, device_index
from poan_runtime.engines.tensorrt import cuda
from poan_runtime.engines.tensorrt.check import (
    check_gpu,
    check_header,
    check_version,
    engine_facts,
    read_plan,
)
from poan_runtime.engines.tensorrt.kernels import KernelCache
from poan_runtime.engines.tensorrt.lanes import Lane, LanePool, StageTimes
from poan_runtime.engines.tensorrt.layers import Layers, layers_of
from poan_runtime.engines.tensorrt.library import Library, load_library
from poan_runtime.engines.tensorrt.ports import Ports, deserialised, find_ports
from poan_runtime.engines.verdicts import check_verdict
from poan_runtime.errors import PoanError
from poan_runtime.models.find import Model


class TensorRTBackend(Backend):
    """An engine and its lanes, for any number of threads. `close` frees everything."""

    def __init__(
        self, engine: Any, ports: Ports, cache: KernelCache, home: cuda.Home, *, graphs: bool
    ) -> None:
        self._engine = engine
        self._cache = cache
        self._ports = ports
        self._home = home
        lanes = LanePool(lambda: Lane(cache.context(engine), ports, graphs=graphs), home, LANES)
        self._lanes = lanes
        self._close = weakref.finalize(self, _release, cache, lanes, home)

    @property
    def batch(self) -> int:
        """Tiles that run at once; fewer are filled up, more run in several parts."""
        return self._ports.batch

    @property
    def notices(self) -> tuple[str, ...]:
        """What the engine has to do without."""
        return self._lanes.notices

    def run(self, batch: Tiles) -> Tiles:
        """See `Backend.run`."""
        return self.start(batch)()

    def start(self, batch: Tiles) -> Callable[[], Tiles]:
        """Begin a batch; what is returned waits for the answer.

        Copies of one batch overlap with the computation of another.
        """
        if self._engine is None:
            raise ValueError("this engine is closed")
        most = self._ports.batch
        parts = collections.deque(
            self._lanes.start(batch[first : first + most]) for first in range(0, len(batch), most)
        )
        return lambda: np.concatenate([wait() for wait in parts])

    def timed(self, batch: Tiles) -> tuple[Tiles, StageTimes]:
        """One batch of at most `batch` tiles in one lane, with the time of each stage."""
        if len(batch) > self.batch:
            raise PoanError(f"this engine runs {self.batch} tiles at once, got {len(batch)}")
        return self._lanes.timed(batch)

    def layers(self, batch: Tiles, count: int) -> Layers:
        """Median time of each layer over ``count`` batches, in a context of their own."""
        with self._home.entered():
            context = self._cache.context(self._engine, graphs=False)
            return layers_of(self._cache.library, self._engine, context, self._ports, batch, count)

    def warm_up(self) -> None:
        """Make all lanes and run one batch in each: kernels are compiled, graphs captured."""
        self._lanes.fill()
        zeros = np.zeros((1, *self._ports.row_in), np.float32)
        for wait in [self.start(zeros) for _ in range(LANES)]:
            wait()

    def close(self) -> None:
        """Keep the kernels that were compiled, then free contexts, memory and engine."""
        self._engine = None
        self._close()


def _release(cache: KernelCache, lanes: LanePool, home: cuda.Home) -> None:
    with home.entered():
        cache.save()
    lanes.release()
    home.leave()


def open_backend(model: Model, options: EngineOptions) -> OpenedBackend:
    """Check and deserialise a plan on a GPU; `NoGpuError` where there is none."""
    library = load_library(engine_facts(model).flavour)
    if options.backend not in ("auto", library.flavour):
        raise PoanError(
            f"--backend: expected {library.flavour}, which built {model.path}, "
            f"got {options.backend}"
        )
    check_version(model, library)
    plan = read_plan(model)
    check_header(model, plan, library, gpu=False)
    gpu = cuda.find_gpu(device_index(options.device))
    notices = check_gpu(model, gpu)
    if options.judged and any(v.file == model.file.name for v in model.manifest.device_verdicts):
        notices += check_verdict(model, library.flavour, gpu.name, library.version)
    home = cuda.Home(gpu)
    with home.entered():
        notices += check_header(model, plan, library, gpu=True)
        backend = _backend(model, plan, library, gpu, home)
    try:
        backend.warm_up()
    except BaseException:
        backend.close()
        raise
    return OpenedBackend(
        backend=backend,
        name=library.flavour,
        device=f"cuda:{gpu.index} ({gpu.name})",
        version=library.version,
        reason=f"the plan was built for this GPU ({gpu.compute_capability})",
        notices=(*notices, *backend.notices),
    )


def _backend(
    model: Model, plan: bytes, library: Library, gpu: Gpu, home: cuda.Home
) -> TensorRTBackend:
    engine = deserialised(model, plan, library)
    ports = find_ports(model, library, engine)
    cache = KernelCache(library, gpu, model.file.sha256)
    return TensorRTBackend(engine, ports, cache, home, graphs=library.flavour == "tensorrt")
