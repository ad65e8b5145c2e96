"""Devices, streams, events, graphs and memory of CUDA, through cuda-python.

Whatever context is current on the thread that opens an engine is the one that is worked in: the
CUDA runtime adopts it. That covers a host program that holds a context made by pycuda. `Home`
pushes that context for our calls, in any thread, and pops it again. This path was not run with
pycuda on a GPU.
"""

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
from cuda.bindings import driver
from cuda.bindings import runtime as cudart
from numpy.typing import NDArray

from poan_runtime.engines.nvidia import Gpu
from poan_runtime.errors import PoanError

H2D = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
D2H = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
NO_MEMORY = (
    cudart.cudaError_t.cudaErrorMemoryAllocation,
    driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY,
)
"""As the runtime and the driver say it."""
OLD_DRIVER = cudart.cudaError_t.cudaErrorInsufficientDriver


class NoGpuError(PoanError):
    """There is no GPU that CUDA can reach; says why."""


class CudaError(RuntimeError):
    """A CUDA call failed where it should not: our bug, or a broken device."""


class OutOfMemoryError(PoanError):
    """The GPU has too little free memory; says how much was wanted and how much is free."""


def call(function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
    """Call a function of cuda-python and return what it gave beside its error code.

    OutOfMemoryError where that code says so, CudaError for any other.
    """
    error, *values = function(*arguments)
    if _no_memory(error):
        raise out_of_memory(function.__name__)
    if int(error) != 0:
        raise CudaError(f"{function.__name__}: {error.name}")
    return values[0] if len(values) == 1 else tuple(values)


def find_gpu(index: int | None = None) -> Gpu:
    """The CUDA device of that number, else the current one; NoGpuError where there is none."""
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
    if index is not None and index >= count:
        raise NoGpuError(f"no GPU cuda:{index}: CUDA finds {count}, numbered from 0")
    index = call(cudart.cudaGetDevice) if index is None else index
    properties = call(cudart.cudaGetDeviceProperties, index)
    return Gpu(
        index=index,
        name=properties.name.decode() if isinstance(properties.name, bytes) else properties.name,
        compute_capability=f"{properties.major}.{properties.minor}",
        memory_bytes=int(properties.totalGlobalMem),
        sms=int(properties.multiProcessorCount),
        driver=_dotted(int(call(cudart.cudaDriverGetVersion))),
        runtime=_dotted(int(call(cudart.cudaRuntimeGetVersion))),
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
    """The context in which an engine lives, for use in any thread.

    The one that is current where it is made, if it is of that GPU; else the GPU's primary
    context, which the CUDA runtime uses too.
    """

    def __init__(self, gpu: Gpu) -> None:
        call(driver.cuInit, 0)
        self._device: Any = call(driver.cuDeviceGet, gpu.index)
        self._primary = False
        self._context: Any = call(driver.cuCtxGetCurrent)
        if int(self._context) == 0 or int(call(driver.cuCtxGetDevice)) != int(self._device):
            self._context = call(driver.cuDevicePrimaryCtxRetain, self._device)
            self._primary = True

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Work in it; the caller's own context is current again afterwards."""
        call(driver.cuCtxPushCurrent, self._context)
        try:
            yield
        finally:
            call(driver.cuCtxPopCurrent)

    def leave(self) -> None:
        """Let go of the primary context, once nothing of ours is in it."""
        if self._primary:
            self._primary = False
            call(driver.cuDevicePrimaryCtxRelease, self._device)


def allocate(size: int, what: str) -> int:
    """Device memory; OutOfMemoryError where that much is not free."""
    error, address = cudart.cudaMalloc(size)
    if _no_memory(error):
        raise out_of_memory(f"{what} need {_mib(size)}")
    return int(call(lambda: (error, address)))


def out_of_memory(what: str) -> OutOfMemoryError:
    """The error that says what was wanted, and how much is free."""
    cudart.cudaGetLastError()  # the runtime would hand it to the next call
    error, free, total = cudart.cudaMemGetInfo()
    room = "" if int(error) else f", {_mib(free)} of {_mib(total)} are free"
    return OutOfMemoryError(f"the GPU has too little memory: {what}{room}")


def _no_memory(error: Any) -> bool:
    """Other libraries count their errors from the same numbers."""
    return any(type(error) is type(code) and error == code for code in NO_MEMORY)


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"


class Memory:
    """Device memory that goes with its owner's stack. A size of 0 takes none."""

    def __init__(self, size: int, what: str, owner: ExitStack) -> None:
        self.size = size
        self.address = allocate(size, what) if size else 0
        if size:
            owner.callback(call, cudart.cudaFree, self.address)


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
        size = self._size = 4 * int(np.prod(shape))
        error, pinned = cudart.cudaHostAlloc(size, cudart.cudaHostAllocDefault)
        if _no_memory(error):
            raise out_of_memory(f"{_mib(size)} of the host's for tiles of shape {shape}")
        pinned = int(call(lambda: (error, pinned)))
        owner.callback(call, cudart.cudaFreeHost, pinned)
        self.device = Memory(size, f"tiles of shape {shape}", owner).address
        memory = (ctypes.c_float * (size // 4)).from_address(pinned)
        self.host: NDArray[np.float32] = np.ctypeslib.as_array(memory).reshape(shape)
        self._pinned = pinned

    def upload(self, stream: Stream) -> None:
        """Enqueue the copy to the device."""
        call(cudart.cudaMemcpyAsync, self.device, self._pinned, self._size, H2D, stream.handle)

    def download(self, stream: Stream) -> None:
        """Enqueue the copy to the host."""
        call(cudart.cudaMemcpyAsync, self._pinned, self.device, self._size, D2H, stream.handle)


class Graph:
    """What a function enqueues on a stream, captured once and launched again and again."""

    def __init__(self, stream: Stream, enqueue: Callable[[], None]) -> None:
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call(cudart.cudaStreamBeginCapture, stream.handle, mode)
        try:
            enqueue()
        except BaseException:  # what went wrong is the error, not that the capture is broken
            _, unfinished = cudart.cudaStreamEndCapture(stream.handle)
            if unfinished is not None and int(unfinished) != 0:
                cudart.cudaGraphDestroy(unfinished)
            cudart.cudaGetLastError()
            raise
        graph = call(cudart.cudaStreamEndCapture, stream.handle)
        self._stream = stream
        try:
            self._executable = call(cudart.cudaGraphInstantiate, graph, 0)
        finally:
            call(cudart.cudaGraphDestroy, graph)

    def launch(self) -> None:
        call(cudart.cudaGraphLaunch, self._executable, self._stream.handle)

    def release(self) -> None:
        call(cudart.cudaGraphExecDestroy, self._executable)
