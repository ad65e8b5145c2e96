"""What ONNX Runtime's GPU providers are told, without a GPU."""

import os
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from poan_runtime.engines import nvidia, onnxrt
from poan_runtime.engines.backend import BACKENDS, EngineOptions, open_backend
from poan_runtime.errors import PoanError
from poan_runtime.models.find import find_model

ALL = [onnxrt.TENSORRT, onnxrt.CUDA, onnxrt.CPU]


class Session:
    """Remembers what it was made with; every provider starts, and ports are those of the CPU."""

    made: tuple[list[str], list[dict[str, str]], str | None]

    def __init__(
        self, path: str, settings: Any, providers: Any, provider_options: Any, enable_fallback: int
    ) -> None:
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
    card = nvidia.Driver(cuda=13000, gpus=("a card", "another"))
    monkeypatch.setattr(nvidia, "find_driver", lambda: card)
    return loaded


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_the_cuda_provider_is_told_not_to_use_tf32(
    device: str, nearest_x2: Path, gpu_build: list[str]
) -> None:
    opened = open_backend(find_model(nearest_x2), EngineOptions(device=device))
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
    options = EngineOptions(backend="onnxruntime-tensorrt")
    open_backend(find_model(nearest_x2), options)
    assert Session.made[0] == ALL
    assert Session.made[1][0]["trt_profile_opt_shapes"] == "lr:8x1x16x16"
    assert gpu_build == ["0"]


def test_a_session_on_the_cpu_touches_nothing_of_the_gpu(
    nearest_x2: Path, gpu_build: list[str]
) -> None:
    open_backend(find_model(nearest_x2), EngineOptions(backend="onnxruntime", device="cpu"))
    assert Session.made == ([onnxrt.CPU], [{}], None)
    assert gpu_build == []


def test_auto_asks_the_driver_and_not_the_list_of_providers(
    nearest_x2: Path, gpu_build: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvidia, "find_driver", lambda: None)
    opened = open_backend(find_model(nearest_x2), EngineOptions(backend="onnxruntime"))
    assert Session.made[0] == [onnxrt.CPU]
    assert opened.device == "cpu"
    assert opened.notices == ()


def test_a_build_without_the_provider_is_told_how_to_come_by_it(
    nearest_x2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = find_model(nearest_x2)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [onnxrt.CPU])
    with pytest.raises(PoanError, match="uninstall -y onnxruntime onnxruntime-gpu, then pip"):
        open_backend(model, EngineOptions(backend="onnxruntime", device="cuda"))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ALL[1:])
    with pytest.raises(PoanError, match="take --backend onnxruntime"):
        open_backend(model, EngineOptions(backend="onnxruntime-tensorrt"))


def test_no_backend_names_a_provider_that_onnxruntime_does_not_ship() -> None:
    """NvTensorRTRTX is a plug-in of its own; a plan of tensorrt-rtx does the same."""
    assert sorted(BACKENDS) == sorted(
        [
            "onnxruntime",
            "onnxruntime-tensorrt",
            "openvino",
            "tensorrt",
            "tensorrt-pycuda",
            "tensorrt-rtx",
        ]
    )


def test_the_extra_that_fits_is_that_of_the_drivers_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    for driver, extra in (
        (None, "tensorrt-rtx-cu13"),
        (nvidia.Driver(cuda=12080, gpus=("a card",)), "tensorrt-rtx-cu12"),
        (nvidia.Driver(cuda=13000, gpus=("a card",)), "tensorrt-rtx-cu13"),
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
    assert nvidia.find_driver() == nvidia.Driver(cuda=12080, gpus=())
    assert not nvidia.has_gpu()
    nvidia.find_driver.cache_clear()


def judged(make_model: Any, verdict: str, **changes: str) -> Any:
    """A model with a verdict earned by this onnxruntime on a card, or elsewhere by ``changes``."""
    entry = {
        "file": "model.onnx",
        "engine": "onnxruntime",
        "device": "a card",
        "version": onnxruntime.__version__,
        "parity": {"verdict": verdict, "checks": []},
    }
    return find_model(make_model(device_verdicts=[entry | changes]))


def test_auto_takes_a_gpu_only_where_the_file_is_proven_on_it(
    make_model: Any, gpu_build: list[str]
) -> None:
    """A pass on the CPU, in the manifest's own parity, is none on a GPU."""

    def runs_on(model: Any, **options: str) -> str:
        return open_backend(model, EngineOptions(backend="onnxruntime", **options)).device

    proven = judged(make_model, "pass")
    assert runs_on(proven) == "cuda:0 (a card)"
    for change in (
        {"device": "another"},
        {"engine": "onnxruntime-tensorrt"},
        {"version": "1.0.0"},
        {"file": "model.fp16.onnx"},
    ):
        elsewhere = judged(make_model, "pass", **change)
        assert runs_on(elsewhere) == "cpu"
        assert runs_on(elsewhere, device="cuda") == "cuda:0 (a card)"
    assert runs_on(judged(make_model, "pass", device="another"), device="cuda:1").startswith(
        "cuda:1"
    )


def test_what_is_not_proven_on_the_gpu_says_so_and_how_to_prove_it(
    nearest_x2: Path, gpu_build: list[str]
) -> None:
    model = find_model(nearest_x2)
    for device in ("auto", "cuda"):
        opened = open_backend(model, EngineOptions(backend="onnxruntime", device=device))
        (notice,) = opened.notices
        assert "not yet compared with PyTorch by onnxruntime" in notice
        assert f"on a card; poan-run --verify --device cuda {model.path} does it" in notice


def test_what_failed_on_this_gpu_does_not_run_on_it(make_model: Any, gpu_build: list[str]) -> None:
    model = judged(make_model, "fail")
    options = EngineOptions(backend="onnxruntime", device="cuda")
    with pytest.raises(PoanError, match=r"on a card is fail; take --device cpu"):
        open_backend(model, options)
    assert open_backend(model, options, judged=False).device == "cuda:0 (a card)"


def test_of_two_gpus_each_has_the_verdict_of_its_own_name(
    make_model: Any, gpu_build: list[str]
) -> None:
    model = judged(make_model, "pass", device="another")
    for device, notices in (("cuda:1", 0), ("cuda:0", 1)):
        options = EngineOptions(backend="onnxruntime", device=device)
        assert len(open_backend(model, options).notices) == notices


def test_auto_weighs_no_gpu_that_the_driver_does_not_show(
    nearest_x2: Path, gpu_build: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    model = find_model(nearest_x2)
    reason = "onnxruntime reaches the GPU"
    assert open_backend(model, EngineOptions()).reason.startswith(reason)
    monkeypatch.setattr(nvidia, "find_driver", lambda: None)
    assert reason not in open_backend(model, EngineOptions()).reason
