"""Devices, streams, events, graphs and memory of CUDA, through cuda-python.

Whatever context is current on the thread that opens an engine is the one that is worked in: the
CUDA runtime adopts it. That covers a host program that holds a context made by pycuda, and
`Home` makes the same context current in every other thread. This path was not run with pycuda
on a GPU.
"""

import ctypes
import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
from cuda.bindings import driver
from cuda.bindings import runtime as cudart
from numpy.typing import NDArray

from poan_runtime.errors import PoanError

H2D = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
D2H = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
OLD_DRIVER = cudart.cudaError_t.cudaErrorInsufficientDriver


class NoGpuError(PoanError):
    """There is no GPU that CUDA can reach; says why."""


class CudaError(RuntimeError):
    """A CUDA call failed where it should not: our bug, or a broken device."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu:
    """The current device. ``compute_capability`` as in a manifest, ``8.6``."""

    index: int
    name: str
    compute_capability: str
    memory_bytes: int


def call(function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
    """Call a function of cuda-python and return what it gave beside its error code."""
    error, *values = function(*arguments)
    if int(error) != 0:
        raise CudaError(f"{function.__name__}: {error.name}")
    return values[0] if len(values) == 1 else tuple(values)


def find_gpu() -> Gpu:
    """The current CUDA device; NoGpuError where there is none."""
    error, count = cudart.cudaGetDeviceCount()
    if error == OLD_DRIVER:
        version = call(cudart.cudaDriverGetVersion)
        if version == 0:
            raise NoGpuError("no GPU: there is no NVIDIA driver on this machine")
        needed = call(cudart.cudaRuntimeGetVersion)
        raise NoGpuError(
            f"no GPU: the NVIDIA driver is for CUDA {_dotted(version)}, "
            f"expected {_dotted(needed)} or later; update it"
        )
    if int(error) != 0 or count == 0:
        raise NoGpuError(f"no GPU: CUDA finds none ({error.name})")
    index = call(cudart.cudaGetDevice)
    properties = call(cudart.cudaGetDeviceProperties, index)
    return Gpu(
        index=index,
        name=properties.name.decode() if isinstance(properties.name, bytes) else properties.name,
        compute_capability=f"{properties.major}.{properties.minor}",
        memory_bytes=int(properties.totalGlobalMem),
    )


def _dotted(version: int) -> str:
    """CUDA's 13040 as people write it.

    >>> _dotted(13040)
    '13.4'
    """
    return f"{version // 1000}.{version % 1000 // 10}"


def memory_in_use() -> int:
    """Bytes of device memory in use by everybody."""
    free, total = call(cudart.cudaMemGetInfo)
    return int(total) - int(free)


class Home:
    """The context that was current where an engine was opened, for use in other threads."""

    def __init__(self, gpu: Gpu) -> None:
        call(cudart.cudaSetDevice, gpu.index) if self._none_current() else None
        call(cudart.cudaFree, 0)  # the runtime creates or adopts the context here
        self._context = call(driver.cuCtxGetCurrent)

    @staticmethod
    def _none_current() -> bool:
        call(driver.cuInit, 0)
        return int(call(driver.cuCtxGetCurrent)) == 0

    def enter(self) -> None:
        """Make it the context of the calling thread, if it is not."""
        if int(call(driver.cuCtxGetCurrent)) != int(self._context):
            call(driver.cuCtxSetCurrent, self._context)


class Stream:
    """A stream that does not wait for the default one; released with its owner's stack."""

    def __init__(self, owner: ExitStack) -> None:
        self.handle = call(cudart.cudaStreamCreateWithFlags, cudart.cudaStreamNonBlocking)
        owner.callback(call, cudart.cudaStreamDestroy, self.handle)

    def wait(self) -> None:
        """Until everything on the stream is done."""
        call(cudart.cudaStreamSynchronize, self.handle)

    def event(self) -> "Event":
        """A point in time on this stream."""
        return Event(self)


class Event:
    """A point in time on a stream."""

    def __init__(self, stream: Stream) -> None:
        self.handle = call(cudart.cudaEventCreate)
        call(cudart.cudaEventRecord, self.handle, stream.handle)

    def ms_until(self, later: "Event") -> float:
        """Milliseconds between two events that have happened."""
        return float(call(cudart.cudaEventElapsedTime, self.handle, later.handle))

    def release(self) -> None:
        call(cudart.cudaEventDestroy, self.handle)


class Buffer:
    """A float32 array of pinned host memory and its twin on the device."""

    def __init__(self, shape: tuple[int, ...], owner: ExitStack) -> None:
        self.bytes_per_row = 4 * int(np.prod(shape[1:]))
        size = shape[0] * self.bytes_per_row
        pinned = int(call(cudart.cudaHostAlloc, size, cudart.cudaHostAllocDefault))
        owner.callback(call, cudart.cudaFreeHost, pinned)
        self.device = int(call(cudart.cudaMalloc, size))
        owner.callback(call, cudart.cudaFree, self.device)
        memory = (ctypes.c_float * (size // 4)).from_address(pinned)
        self.host: NDArray[np.float32] = np.ctypeslib.as_array(memory).reshape(shape)
        self._pinned = pinned

    def upload(self, rows: int, stream: Stream) -> None:
        """Enqueue the copy of the first rows to the device."""
        size = rows * self.bytes_per_row
        call(cudart.cudaMemcpyAsync, self.device, self._pinned, size, H2D, stream.handle)

    def download(self, rows: int, stream: Stream) -> None:
        """Enqueue the copy of the first rows to the host."""
        size = rows * self.bytes_per_row
        call(cudart.cudaMemcpyAsync, self._pinned, self.device, size, D2H, stream.handle)


class Graph:
    """What a function enqueues on a stream, captured once and launched again and again."""

    def __init__(self, stream: Stream, enqueue: Callable[[], None]) -> None:
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call(cudart.cudaStreamBeginCapture, stream.handle, mode)
        try:
            enqueue()
        finally:
            graph = call(cudart.cudaStreamEndCapture, stream.handle)
        self._stream = stream
        self._executable = call(cudart.cudaGraphInstantiate, graph, 0)
        call(cudart.cudaGraphDestroy, graph)

    def launch(self) -> None:
        call(cudart.cudaGraphLaunch, self._executable, self._stream.handle)

    def release(self) -> None:
        call(cudart.cudaGraphExecDestroy, self._executable)
