"""Our CUDA module, lanes and graphs on the real device, a small kernel in TensorRT's place.

Everything of ours but the vendor's call: if this passes and a plan does not run, it is the plan.
"""

import ctypes
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from cuda.bindings import driver, nvrtc
from cuda.bindings import runtime as cudart
from numpy.typing import NDArray

from poan_runtime.engines.tensorrt import cuda
from poan_runtime.engines.tensorrt.backend import TensorRTBackend
from poan_runtime.engines.tensorrt.ports import Ports

TILE, BATCH, SCALE = 64, 8, 2
PORTS = Ports(
    input="lr",
    output="sr",
    batch=BATCH,
    row_in=(1, TILE, TILE),
    row_out=(1, SCALE * TILE, SCALE * TILE),
)
SPIN_MS = 4
CUDA_13 = 13000
"""From here on a context is made with parameters of its own."""
SOURCE = b"""
extern "C" __global__ void repeat(const float* lr, float* sr, int side, long long ticks) {
    long long start = clock64();
    while (clock64() - start < ticks) {}
    int fine = 2 * side, i = blockIdx.x * blockDim.x + threadIdx.x;
    int x = i % fine, y = (i / fine) % fine, n = i / (fine * fine);
    sr[i] = lr[n * side * side + (y / 2) * side + x / 2];
}
"""
Tiles = NDArray[np.float32]


def compiled(capability: str) -> bytes:
    """The kernel for a compute capability; NVRTC needs no GPU for that."""
    program = cuda.call(nvrtc.nvrtcCreateProgram, SOURCE, b"repeat.cu", 0, [], [])
    options = [f"--gpu-architecture=sm_{capability.replace('.', '')}".encode()]
    cuda.call(nvrtc.nvrtcCompileProgram, program, len(options), options)
    cubin = b" " * int(cuda.call(nvrtc.nvrtcGetCUBINSize, program))
    cuda.call(nvrtc.nvrtcGetCUBIN, program, cubin)
    return cubin


class Kernel:
    """An execution context whose network is one kernel that spins, then repeats voxels."""

    def __init__(self, function: Any, ticks: int, scratch: int, *, breaks_capture: bool) -> None:
        self._function, self._ticks, self._scratch = function, ticks, scratch
        self._breaks = breaks_capture
        self._address: dict[str, int] = {}

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._address[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        return shape == (BATCH, *PORTS.row_in)

    def update_device_memory_size_for_shapes(self) -> int:
        return self._scratch

    def set_device_memory(self, memory: int, size: int) -> None:
        """The kernel needs none; that there is room for it is what is tested."""

    def execute_async_v3(self, stream: int) -> bool:
        if self._breaks:
            cuda.call(cudart.cudaStreamSynchronize, stream)  # no capture allows that
        values = (self._address["lr"], self._address["sr"], TILE, self._ticks)
        types = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong)
        blocks = BATCH * (SCALE * TILE) ** 2 // 256
        cuda.call(
            driver.cuLaunchKernel,
            *(self._function, blocks, 1, 1, 256, 1, 1, 0, stream, (values, types), 0),
        )
        return True


class Contexts:
    """In place of the cache of kernels."""

    def __init__(self, make: Callable[[], Kernel]) -> None:
        self._make = make

    def context(self, engine: Any) -> Kernel:
        return self._make()

    def save(self) -> None:
        """There is nothing to keep."""


def tiles(seed: int, count: int = BATCH) -> Tiles:
    return np.random.default_rng(seed).random((count, *PORTS.row_in), np.float32)


def right(answer: Tiles, batch: Tiles) -> bool:
    return bool(np.array_equal(answer, batch.repeat(2, 2).repeat(2, 3)))


class Bench:
    """The kernel on the GPU at hand, and backends around it."""

    def __init__(self, gpu: cuda.Gpu) -> None:
        self.gpu = gpu
        self.home = cuda.Home(gpu)
        with self.home.entered():
            module = cuda.call(driver.cuModuleLoadData, compiled(gpu.compute_capability))
            self.function = cuda.call(driver.cuModuleGetFunction, module, b"repeat")
            khz = cudart.cudaDeviceAttr.cudaDevAttrClockRate
            self.ticks = SPIN_MS * int(cuda.call(cudart.cudaDeviceGetAttribute, khz, gpu.index))

    def backend(
        self, *, spin: bool = False, scratch: int = 0, breaks: bool = False
    ) -> TensorRTBackend:
        ticks = self.ticks if spin else 0
        contexts: Any = Contexts(
            lambda: Kernel(self.function, ticks, scratch, breaks_capture=breaks)
        )
        return TensorRTBackend(object(), PORTS, contexts, cuda.Home(self.gpu), graphs=True)


def answers_are_right(bench: Bench) -> bool:
    engine = bench.backend()
    return all(right(engine.run(tiles(n, n)), tiles(n, n)) for n in (1, 3, 8, 20, 8, 8))


def threads_share_lanes(bench: Bench) -> bool:
    engine, good = bench.backend(), []

    def work(seed: int) -> None:
        good.extend(right(engine.run(tiles(seed)), tiles(seed)) for _ in range(50))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return good == [True] * 200


def closing_gives_memory_back(bench: Bench) -> bool:
    used = []
    for _ in range(4):
        engine = bench.backend(scratch=64 << 20)
        engine.warm_up()
        engine.close()
        with bench.home.entered():
            used.append(cuda.memory_in_use())
    return max(used[1:]) - min(used[1:]) < 8 << 20


def one_lane_goes_on_where_two_do_not_fit(bench: Bench) -> bool:
    with bench.home.entered():
        free = int(cuda.call(cudart.cudaMemGetInfo)[0])
    engine = bench.backend(scratch=int(0.7 * free))
    engine.warm_up()
    return len(engine.notices) == 1 and right(engine.run(tiles(0)), tiles(0))


def too_much_is_refused_in_one_line(bench: Bench) -> bool:
    try:
        bench.backend(scratch=4 * bench.gpu.memory_bytes).warm_up()
    except cuda.OutOfMemoryError as error:
        return "are free" in str(error) and right(bench.backend().run(tiles(0)), tiles(0))
    return False


def a_broken_capture_goes_on_without_a_graph(bench: Bench) -> bool:
    engine = bench.backend(breaks=True)
    engine.warm_up()
    return len(engine.notices) == 1 and right(engine.run(tiles(0)), tiles(0))


def the_callers_context_stays(bench: Bench) -> bool:
    """Memory of the primary context is used while another context is current."""
    engine = bench.backend()
    device = cuda.call(driver.cuDeviceGet, bench.gpu.index)
    settings = (None, 0) if driver.CUDA_VERSION >= CUDA_13 else (0,)
    other = cuda.call(driver.cuCtxCreate, *settings, device)
    try:
        good = right(engine.run(tiles(0)), tiles(0))
        return good and int(cuda.call(driver.cuCtxGetCurrent)) == int(other)
    finally:
        cuda.call(driver.cuCtxDestroy, other)


def python_runs_while_the_device_does(bench: Bench) -> bool:
    """cuda-python below 12.9.1 holds the GIL while it waits."""
    engine, counted, stop = bench.backend(spin=True), [0], threading.Event()

    def count() -> None:
        while not stop.is_set():
            counted[0] += 1
            time.sleep(1e-4)

    counter = threading.Thread(target=count)
    engine.warm_up()
    counter.start()
    for seed in range(10):
        engine.run(tiles(seed))
    stop.set()
    counter.join()
    return counted[0] > 10 * SPIN_MS  # at least one turn of a millisecond


def idle_share(bench: Bench) -> float:
    """Share of the wall time in which the device waits for us, two batches in flight."""
    engine, count = bench.backend(spin=True), 100
    engine.warm_up()
    compute_ms = engine.timed(tiles(0))[1].compute_ms
    batch = tiles(0)
    start = time.perf_counter()
    waits = [engine.start(batch) for _ in range(2)]
    for _ in range(count - 2):
        waits.pop(0)()
        waits.append(engine.start(batch))
    for wait in waits:
        wait()
    return 1 - count * compute_ms / (1e3 * (time.perf_counter() - start))


CHECKS = (
    answers_are_right,
    threads_share_lanes,
    closing_gives_memory_back,
    one_lane_goes_on_where_two_do_not_fit,
    too_much_is_refused_in_one_line,
    a_broken_capture_goes_on_without_a_graph,
    the_callers_context_stays,
    python_runs_while_the_device_does,
)


def run() -> dict[str, Any]:
    """Each check by name, and the idle share. One that raises has its error as its outcome."""
    bench = Bench(cuda.find_gpu())
    found: dict[str, Any] = {}
    for check in CHECKS:
        try:
            found[check.__name__] = check(bench)
        except Exception as error:
            found[check.__name__] = repr(error)
        print(check.__name__, found[check.__name__], flush=True)
    failed = [name for name, outcome in found.items() if outcome is not True]
    return {"checks": found, "idle_share": idle_share(bench), "failed": failed}
