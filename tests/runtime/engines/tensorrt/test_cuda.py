"""CUDA through the real cuda-python: what it says where there is no driver."""

import inspect

import pytest

pytest.importorskip("cuda.bindings", reason="needs cuda-python")

from cuda.bindings import runtime as cudart

from poan_runtime.engines.tensorrt import cuda

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
