"""What ONNX Runtime's GPU providers are told, without a GPU."""

import os
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from poan_runtime.engines import backend, nvidia, onnxrt
from poan_runtime.engines.backend import BACKENDS, BackendOptions, open_backend
from poan_runtime.errors import PoanError
from poan_runtime.models.find import find_model

ALL = [onnxrt.TENSORRT, onnxrt.CUDA, onnxrt.CPU]


class Session:
    """Remembers what it was made with; every provider starts, and ports are those of the CPU."""

    made: tuple[list[str], list[dict[str, str]], str | None]

    def __init__(self, path: str, settings: Any, providers: Any, provider_options: Any) -> None:
        Session.made = (providers, provider_options, os.environ.get("NVIDIA_TF32_OVERRIDE"))
        self._real = REAL(path, settings, providers=[onnxrt.CPU])
        self.get_inputs, self.get_outputs = self._real.get_inputs, self._real.get_outputs

    def get_providers(self) -> list[str]:
        return Session.made[0]


REAL = onnxruntime.InferenceSession


@pytest.fixture
def gpu_build(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An onnxruntime-gpu on a machine with one GPU; gives the order of what was loaded."""
    loaded: list[str] = []
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ALL)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(
        onnxruntime,
        "preload_dlls",
        lambda: loaded.append(os.environ["NVIDIA_TF32_OVERRIDE"]),
        raising=False,
    )
    for module in (onnxrt, backend):
        monkeypatch.setattr(module, "has_gpu", lambda: True)
    return loaded


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:1"])
def test_the_cuda_provider_is_told_not_to_use_tf32(
    device: str, nearest_x2: Path, gpu_build: list[str]
) -> None:
    opened = open_backend(find_model(nearest_x2), BackendOptions(device=device))
    providers, options, override = Session.made
    assert providers == [onnxrt.CUDA, onnxrt.CPU]
    assert options[0] == {
        "device_id": "1" if device == "cuda:1" else "0",
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
    }
    assert options[1] == {}
    assert override == "0"
    assert opened.device.startswith("cuda:1" if device == "cuda:1" else "cuda:0")


def test_tf32_is_off_before_any_library_of_the_gpu_loads(
    nearest_x2: Path, gpu_build: list[str]
) -> None:
    options = BackendOptions(backend="onnxruntime-tensorrt")
    open_backend(find_model(nearest_x2), options)
    assert Session.made[0] == ALL
    assert Session.made[1][0]["trt_profile_opt_shapes"] == "lr:8x1x16x16"
    assert gpu_build == ["0"]


def test_a_session_on_the_cpu_touches_nothing_of_the_gpu(
    nearest_x2: Path, gpu_build: list[str]
) -> None:
    open_backend(find_model(nearest_x2), BackendOptions(backend="onnxruntime", device="cpu"))
    assert Session.made == ([onnxrt.CPU], [{}], None)
    assert gpu_build == []


def test_auto_asks_the_driver_and_not_the_list_of_providers(
    nearest_x2: Path, gpu_build: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (onnxrt, backend):
        monkeypatch.setattr(module, "has_gpu", lambda: False)
    opened = open_backend(find_model(nearest_x2), BackendOptions(backend="onnxruntime"))
    assert Session.made[0] == [onnxrt.CPU]
    assert opened.device == "cpu"
    assert opened.notices == ()


def test_a_build_without_the_provider_is_told_how_to_come_by_it(
    nearest_x2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = find_model(nearest_x2)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [onnxrt.CPU])
    with pytest.raises(PoanError, match="uninstall -y onnxruntime onnxruntime-gpu, then pip"):
        open_backend(model, BackendOptions(backend="onnxruntime", device="cuda"))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ALL[1:])
    with pytest.raises(PoanError, match="take --backend onnxruntime"):
        open_backend(model, BackendOptions(backend="onnxruntime-tensorrt"))


def test_no_backend_names_a_provider_that_onnxruntime_does_not_ship() -> None:
    """NvTensorRTRTX is a plug-in of its own; a plan of tensorrt-rtx does the same."""
    assert sorted(BACKENDS) == sorted(
        ["onnxruntime", "onnxruntime-tensorrt", "openvino", "tensorrt", "tensorrt-rtx"]
    )


def test_the_extra_that_fits_is_that_of_the_drivers_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    for driver, extra in (
        (None, "tensorrt-rtx-cu13"),
        (nvidia.Driver(cuda=12080, gpus=1), "tensorrt-rtx-cu12"),
        (nvidia.Driver(cuda=13000, gpus=1), "tensorrt-rtx-cu13"),
    ):
        monkeypatch.setattr(nvidia, "find_driver", lambda driver=driver: driver)
        assert nvidia.fitting_extra("tensorrt-rtx") == extra


def test_a_driver_that_does_not_start_shows_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def cuDriverGetVersion(self, version: Any) -> int:
            version._obj.value = 12080
            return 0

        def cuInit(self, flags: int) -> int:
            return 999

    nvidia.find_driver.cache_clear()
    monkeypatch.setattr(nvidia.ctypes, "CDLL", lambda name: Broken())
    assert nvidia.find_driver() == nvidia.Driver(cuda=12080, gpus=0)
    assert not nvidia.has_gpu()
    nvidia.find_driver.cache_clear()
