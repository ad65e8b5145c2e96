"""CUDA through the real cuda-python: what it says where there is no driver."""

import contextlib
import ctypes
import inspect
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("cuda.bindings", reason="needs cuda-python")

from cuda.bindings import driver, nvrtc
from cuda.bindings import runtime as cudart

from poan_runtime.engines.tensorrt import cuda
from poan_runtime.errors import PoanError

ENOUGH = (cudart.cudaError_t.cudaSuccess,)


def test_without_a_driver_the_reason_is_one_line(no_gpu: None) -> None:
    with pytest.raises(cuda.NoGpuError) as refusal:
        cuda.find_gpu()
    assert str(refusal.value).startswith("no GPU: ")
    assert "\n" not in str(refusal.value)


def test_an_old_driver_is_told_apart_from_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runtime answers both alike; the driver's version tells them apart."""
    insufficient = cudart.cudaError_t.cudaErrorInsufficientDriver
    monkeypatch.setattr(cudart, "cudaGetDeviceCount", lambda: (insufficient, None))
    monkeypatch.setattr(cudart, "cudaRuntimeGetVersion", lambda: (*ENOUGH, 13040))
    monkeypatch.setattr(cudart, "cudaDriverGetVersion", lambda: (*ENOUGH, 12020))
    with pytest.raises(cuda.NoGpuError, match=r"is for CUDA 12\.2, expected 13\.4 or later"):
        cuda.find_gpu()
    monkeypatch.setattr(cudart, "cudaDriverGetVersion", lambda: (*ENOUGH, 0))
    with pytest.raises(cuda.NoGpuError, match="no NVIDIA driver on this machine"):
        cuda.find_gpu()


def test_a_failed_call_names_the_function_and_the_error(no_gpu: None) -> None:
    with pytest.raises(cuda.CudaError, match=r"^cudaMalloc: cudaErrorInsufficientDriver$"):
        cuda.call(cudart.cudaMalloc, 16)


def test_calls_give_what_stands_beside_the_error_code() -> None:
    assert cuda.call(lambda: (*ENOUGH, 7)) == 7
    assert cuda.call(lambda: (*ENOUGH, 1, 2)) == (1, 2)
    assert cuda.call(lambda: ENOUGH) == ()


GPU = cuda.Gpu(index=0, name="a card", compute_capability="8.6", memory_bytes=1)


@pytest.fixture
def contexts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A thread's stack of contexts, in which 0 stands for none; primary contexts are 100."""
    stack, fine = [0], (driver.CUresult.CUDA_SUCCESS,)
    for name, stand_in in (
        ("cuInit", lambda flags: fine),
        ("cuDeviceGet", lambda index: (*fine, index)),
        ("cuCtxGetCurrent", lambda: (*fine, stack[-1])),
        ("cuCtxGetDevice", lambda: (*fine, stack[-1] % 10)),
        ("cuDevicePrimaryCtxRetain", lambda device: (*fine, 100)),
        ("cuDevicePrimaryCtxRelease", lambda device: (stack.insert(0, -1), fine)[1]),
        ("cuCtxPushCurrent", lambda context: (stack.append(context), fine)[1]),
        ("cuCtxPopCurrent", lambda: (*fine, stack.pop())),
    ):
        monkeypatch.setattr(driver, name, stand_in)
    return stack


@pytest.mark.parametrize(("current", "worked_in"), [(0, 100), (20, 20), (21, 100)])
def test_the_callers_context_is_worked_in_where_it_is_of_that_gpu_and_is_back_afterwards(
    current: int, worked_in: int, contexts: list[int]
) -> None:
    """20 is a context of GPU 0, 21 of GPU 1."""
    contexts[:] = [0, current]
    home = cuda.Home(GPU)
    with contextlib.suppress(PoanError), home.entered():
        assert contexts == [0, current, worked_in]
        raise PoanError("what ends the work")
    assert contexts == [0, current]
    home.leave()
    home.leave()
    assert contexts.count(-1) == (worked_in == 100)  # released once, and only what is ours


RUNTIME, DRIVER = cudart.cudaError_t.cudaErrorMemoryAllocation, driver.CUresult
FREE = (*ENOUGH, 100 << 20, 8 << 30)


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of 8 GiB of which 100 MiB are free."""
    monkeypatch.setattr(cudart, "cudaMemGetInfo", lambda: FREE)
    monkeypatch.setattr(cudart, "cudaGetLastError", lambda: ENOUGH)


@pytest.mark.parametrize("code", [RUNTIME, DRIVER.CUDA_ERROR_OUT_OF_MEMORY])
def test_any_call_that_runs_out_of_memory_says_what_is_free(code: Any, little: None) -> None:
    def cuGraphInstantiate() -> tuple[Any, None]:
        return code, None

    with pytest.raises(cuda.OutOfMemoryError) as refusal:
        cuda.call(cuGraphInstantiate)
    assert isinstance(refusal.value, PoanError)
    assert str(refusal.value) == (
        "the GPU has too little memory: cuGraphInstantiate, 100 MiB of 8192 MiB are free"
    )


def test_an_error_of_the_same_number_in_another_library_is_another_error(little: None) -> None:
    with pytest.raises(cuda.CudaError, match="NVRTC_ERROR_PROGRAM_CREATION_FAILURE"):
        cuda.call(lambda: (nvrtc.nvrtcResult(2), None))


def test_memory_that_is_not_there_is_named_with_needed_and_free_bytes(
    little: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cudart, "cudaMalloc", lambda size: (RUNTIME, None))
    with ExitStack() as owner, pytest.raises(cuda.OutOfMemoryError) as refusal:
        cuda.Memory(300 << 20, "activations of a batch of 8", owner)
    assert str(refusal.value) == (
        "the GPU has too little memory: activations of a batch of 8 need 300 MiB, "
        "100 MiB of 8192 MiB are free"
    )


def test_pinned_memory_goes_where_the_devices_half_does_not_come(
    little: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned, freed = (ctypes.c_float * 4)(), []
    address = ctypes.addressof(pinned)
    monkeypatch.setattr(cudart, "cudaHostAlloc", lambda size, flags: (*ENOUGH, address))
    monkeypatch.setattr(cudart, "cudaMalloc", lambda size: (RUNTIME, None))
    monkeypatch.setattr(cudart, "cudaFreeHost", lambda at: (freed.append(at), ENOUGH)[1])
    with ExitStack() as owner, pytest.raises(cuda.OutOfMemoryError, match="tiles of shape"):
        cuda.Buffer((4,), owner)
    assert freed == [address]
    monkeypatch.setattr(cudart, "cudaHostAlloc", lambda size, flags: (RUNTIME, None))
    with ExitStack() as owner, pytest.raises(cuda.OutOfMemoryError, match="of the host's"):
        cuda.Buffer((4,), owner)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("cudaStreamCreateWithFlags", 1),
        ("cudaStreamBeginCapture", 2),
        ("cudaStreamEndCapture", 1),
        ("cudaGraphInstantiate", 2),
        ("cudaGraphLaunch", 2),
        ("cudaMemcpyAsync", 5),
        ("cudaHostAlloc", 2),
        ("cudaEventElapsedTime", 2),
        ("cudaMemGetInfo", 0),
    ],
)
def test_cuda_python_takes_as_many_arguments_as_are_given(name: str, arguments: int) -> None:
    first_line = (getattr(cudart, name).__doc__ or "").splitlines()[0]
    given = first_line[first_line.index("(") + 1 : first_line.rindex(")")]
    assert len([part for part in given.split(",") if part.strip()]) == arguments


def test_constants_that_are_passed_exist() -> None:
    mode = cudart.cudaStreamCaptureMode
    assert int(cudart.cudaStreamNonBlocking) == 1
    assert int(mode.cudaStreamCaptureModeThreadLocal) == 1
    assert int(cudart.cudaHostAllocDefault) == 0
    assert inspect.isclass(cudart.cudaMemcpyKind)


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPU 0 of compute capability 8.6, and GPU 1 of 12.0, which is the current one."""

    def properties(index: int) -> Any:
        card = SimpleNamespace(
            name=f"card {index}".encode(),
            major=(8, 12)[index],
            minor=(6, 0)[index],
            totalGlobalMem=(index + 1) << 33,
            multiProcessorCount=(84, 170)[index],
        )
        return (*ENOUGH, card)

    for name, stand_in in (
        ("cudaGetDeviceCount", lambda: (*ENOUGH, 2)),
        ("cudaGetDevice", lambda: (*ENOUGH, 1)),
        ("cudaGetDeviceProperties", properties),
        ("cudaDriverGetVersion", lambda: (*ENOUGH, 13010)),
        ("cudaRuntimeGetVersion", lambda: (*ENOUGH, 13040)),
    ):
        monkeypatch.setattr(cudart, name, stand_in)


def test_the_gpu_of_a_number_is_described_with_all_that_a_plan_is_tied_to(
    two_cards: None,
) -> None:
    assert cuda.find_gpu(0) == cuda.Gpu(
        index=0,
        name="card 0",
        compute_capability="8.6",
        memory_bytes=1 << 33,
        sms=84,
        driver="13.1",
        runtime="13.4",
    )
    assert cuda.find_gpu().index == 1  # the current one
    with pytest.raises(cuda.NoGpuError, match="no GPU cuda:2: CUDA finds 2, numbered from 0"):
        cuda.find_gpu(2)


def test_device_memory_and_streams_go_with_their_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[tuple[str, int]] = []
    for name, made in (("cudaMalloc", 77), ("cudaStreamCreateWithFlags", 88)):
        monkeypatch.setattr(cudart, name, lambda size, made=made: (*ENOUGH, made))
    for name in ("cudaFree", "cudaStreamDestroy"):
        ends = lambda at, name=name: (freed.append((name, at)), ENOUGH)[1]  # noqa: E731
        monkeypatch.setattr(cudart, name, ends)
    with ExitStack() as owner:
        assert cuda.Memory(16, "tiles", owner).address == 77
        assert cuda.Memory(0, "nothing", owner).address == 0
        assert cuda.Stream(owner).handle == 88
        assert freed == []
    assert freed == [("cudaStreamDestroy", 88), ("cudaFree", 77)]


def test_what_went_wrong_in_a_capture_is_the_error_and_the_capture_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stream that goes on capturing would refuse every later batch."""
    done: list[str] = []
    for name, answer in (
        ("cudaStreamBeginCapture", ENOUGH),
        ("cudaStreamEndCapture", (*ENOUGH, 5)),
        ("cudaGraphDestroy", ENOUGH),
        ("cudaGetLastError", ENOUGH),
    ):
        call = lambda *_, name=name, answer=answer: (done.append(name), answer)[1]  # noqa: E731
        monkeypatch.setattr(cudart, name, call)

    def refuses() -> None:
        raise PoanError("the engine refused to run a batch")

    stream: Any = SimpleNamespace(handle=7)
    with pytest.raises(PoanError, match="the engine refused to run a batch"):
        cuda.Graph(stream, refuses)
    ended = ["cudaStreamEndCapture", "cudaGraphDestroy", "cudaGetLastError"]
    assert done == ["cudaStreamBeginCapture", *ended]


def test_an_error_that_was_told_is_not_handed_to_the_next_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(cudart, "cudaMemGetInfo", lambda: FREE)
    monkeypatch.setattr(cudart, "cudaGetLastError", lambda: (asked.append("asked"), ENOUGH)[1])
    assert isinstance(cuda.out_of_memory("a batch"), PoanError)
    assert asked == ["asked"]
