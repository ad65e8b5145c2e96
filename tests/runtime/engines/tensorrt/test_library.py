"""What the backend asks of TensorRT, against the real tensorrt-rtx: names, enums, signatures."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from poan_runtime import extras, files
from poan_runtime.engines.tensorrt import library as tensorrt_library
from poan_runtime.engines.tensorrt.build.plan import BuiltPlan
from poan_runtime.engines.tensorrt.check import HEADER_BYTES, REMEDIES, diagnostics
from poan_runtime.engines.tensorrt.library import load_library
from poan_runtime.errors import PoanError
from poan_runtime.files import cache_folder

pytest.importorskip("cuda.bindings", reason="needs cuda-python")
from poan_runtime.engines.tensorrt import cuda
from poan_runtime.engines.tensorrt.kernels import KernelCache

trt = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        ("Runtime", ["deserialize_cuda_engine", "get_engine_validity", "engine_header_size"]),
        (
            "ICudaEngine",
            [
                "create_execution_context",
                "create_runtime_config",
                "num_io_tensors",
                "get_tensor_name",
                "get_tensor_mode",
                "get_tensor_shape",
                "get_tensor_dtype",
                "get_tensor_profile_shape",
            ],
        ),
        (
            "IExecutionContext",
            [
                "set_input_shape",
                "set_tensor_address",
                "execute_async_v3",
                "update_device_memory_size_for_shapes",
                "set_device_memory",
                "nvtx_verbosity",
            ],
        ),
        (
            "IRuntimeConfig",
            [
                "cuda_graph_strategy",
                "create_runtime_cache",
                "set_runtime_cache",
                "dynamic_shapes_kernel_specialization_strategy",
                "set_execution_context_allocation_strategy",
            ],
        ),
        ("IRuntimeCache", ["serialize", "deserialize"]),
        (
            "IBuilderConfig",
            [
                "num_compute_capabilities",
                "set_compute_capability",
                "profiling_verbosity",
                "add_optimization_profile",
                "create_timing_cache",
                "set_timing_cache",
                "get_timing_cache",
                "get_flag",
                "clear_flag",
            ],
        ),
    ],
)
def test_the_library_has_what_the_backend_calls(owner: str, names: list[str]) -> None:
    assert [name for name in names if not hasattr(getattr(trt, owner), name)] == []


@pytest.mark.parametrize(
    ("method", "signature"),
    [
        (trt.IExecutionContext.execute_async_v3, "stream_handle: typing.SupportsInt) -> bool"),
        (trt.IExecutionContext.set_tensor_address, "name: str, memory: typing.SupportsInt) -> b"),
        (trt.IExecutionContext.set_input_shape, "name: str, shape: tuple) -> bool"),
        (trt.ICudaEngine.create_execution_context, "IRuntimeConfig = None) -> tensorrt_rtx_bin"),
        (trt.IRuntimeCache.deserialize, "blob: typing_extensions.Buffer) -> bool"),
        (trt.Runtime.get_engine_validity, "buffer: typing_extensions.Buffer) -> tuple"),
    ],
)
def test_signatures_are_those_that_the_backend_uses(method: object, signature: str) -> None:
    assert signature in (method.__doc__ or "")


def test_enums_that_the_backend_names_exist() -> None:
    assert trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE in trt.CudaGraphStrategy.__members__.values()
    assert trt.TensorIOMode.INPUT != trt.TensorIOMode.OUTPUT
    assert trt.nptype(trt.DataType.FLOAT) is np.float32
    assert {"INVALID", "SUBOPTIMAL"} < set(trt.EngineValidity.__members__)


def test_every_diagnosis_of_the_library_has_a_remedy() -> None:
    assert set(REMEDIES) == set(trt.EngineInvalidityDiagnostics.__members__)


def test_diagnoses_are_bits_and_several_can_be_set() -> None:
    kinds = trt.EngineInvalidityDiagnostics
    bits = int(kinds.VERSION_MISMATCH) | int(kinds.UNSUPPORTED_CC)
    assert diagnostics(trt, bits) == ["VERSION_MISMATCH", "UNSUPPORTED_CC"]
    assert diagnostics(trt, 0) == []


def test_the_header_is_as_long_as_the_library_says() -> None:
    library = load_library("tensorrt-rtx")
    assert library.api.Runtime(library.logger).engine_header_size == HEADER_BYTES


def test_without_a_gpu_a_real_plan_does_not_deserialise_and_the_log_says_why(
    built: BuiltPlan, no_gpu: None
) -> None:
    library = load_library("tensorrt-rtx")
    runtime = library.api.Runtime(library.logger)
    assert runtime.deserialize_cuda_engine(built.order.plan.read_bytes()) is None
    assert "driver" in library.last_error()
    assert "\n" not in library.last_error()


def test_the_log_keeps_the_last_lines_alone() -> None:
    library = load_library("tensorrt-rtx")
    for index in range(2 * tensorrt_library.LOG_LINES):
        library.logger.log(trt.ILogger.Severity.INFO, str(index))
    library.logger.log(trt.ILogger.Severity.ERROR, "the first line\nthe second")
    assert len(library.log) == tensorrt_library.LOG_LINES
    assert library.last_error() == "the first line"


def test_a_library_that_is_missing_names_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tensorrt_library.MODULES, "tensorrt", "tensorrt_that_is_not_there")
    with pytest.raises(PoanError) as refusal:
        load_library("tensorrt")
    command = extras.command("tensorrt-cu13")
    assert str(refusal.value) == f"tensorrt_that_is_not_there is missing; run: {command}"


def test_one_library_and_one_logger_per_process() -> None:
    """TensorRT keeps the first logger that it is given."""
    assert load_library("tensorrt-rtx") is load_library("tensorrt-rtx")


class Settings:
    """A runtime configuration that remembers what it was told."""

    def __init__(self) -> None:
        self.told: dict[str, object] = {}

    def create_runtime_cache(self) -> None:
        return None

    def set_runtime_cache(self, kernels: object) -> None:
        self.told["cache"] = kernels

    def set_execution_context_allocation_strategy(self, strategy: object) -> None:
        self.told["memory"] = strategy


class Engine:
    def __init__(self) -> None:
        self.settings = Settings()
        self.made_with: object = None

    def create_runtime_config(self) -> Settings:
        return self.settings

    def create_execution_context(self, how: object) -> "Engine":
        self.made_with = how
        return self


def gpu() -> cuda.Gpu:
    return cuda.Gpu(index=0, name="a card", compute_capability="8.6", memory_bytes=1)


def test_tensorrt_rtx_runs_its_final_kernels_from_the_first_batch() -> None:
    """With the default, fallback kernels answer first: what is verified is not what runs."""
    engine = Engine()
    context = KernelCache(load_library("tensorrt-rtx"), gpu(), "0" * 64).context(engine)
    settings: Any = engine.settings
    eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    assert settings.dynamic_shapes_kernel_specialization_strategy == eager
    assert settings.told["memory"] == trt.ExecutionContextAllocationStrategy.USER_MANAGED
    assert engine.made_with is settings
    assert context.nvtx_verbosity == trt.ProfilingVerbosity.NONE


def test_tensorrt_leaves_the_memory_of_a_context_to_us() -> None:
    engine = Engine()
    rtx = load_library("tensorrt-rtx")
    library = dataclasses.replace(rtx, flavour="tensorrt")  # the two have the same classes
    KernelCache(library, gpu(), "0" * 64).context(engine)
    assert engine.made_with == trt.ExecutionContextAllocationStrategy.USER_MANAGED


def test_a_home_that_cannot_be_written_costs_time_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").write_text("a file where the cache folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    cache = KernelCache(load_library("tensorrt-rtx"), gpu(), "0" * 64)
    cache.context(Engine())
    assert cache.path.parent.is_dir()
    assert tmp_path not in cache.path.parents


def test_a_folder_that_is_there_and_cannot_be_written_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for another user than root, whom no mode stops."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(
        files.os, "access", lambda path, mode: not Path(path).is_relative_to(tmp_path)
    )
    assert tmp_path not in cache_folder().parents
    assert cache_folder().is_dir()


def test_the_cache_folder_is_its_owners_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels are code that is loaded again; a folder of an earlier version is closed too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "poan").mkdir(mode=0o755)
    assert cache_folder().stat().st_mode & 0o777 == 0o700


class Kernels:
    """What tensorrt-rtx compiled: more with each run."""

    def __init__(self) -> None:
        self.held = b""

    def deserialize(self, held: bytes) -> bool:
        self.held = held
        return True

    def serialize(self) -> bytes:
        return self.held + b"k"


class KeepsKernels(Settings):
    def create_runtime_cache(self) -> Any:
        return Kernels()


def compiling() -> Engine:
    engine = Engine()
    engine.settings = KeepsKernels()
    return engine


def started(engine: Engine) -> KernelCache:
    cache = KernelCache(load_library("tensorrt-rtx"), gpu(), "0" * 64)
    cache.context(engine)
    return cache


def test_kernels_that_one_start_compiled_are_there_at_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = started(compiling())
    cache.save()
    assert cache.path.read_bytes() == b"k"
    engine = compiling()
    started(engine).save()
    kernels: Any = engine.settings.told["cache"]
    assert kernels.held == b"k"
    assert cache.path.read_bytes() == b"kk"


def test_kernels_that_cannot_be_kept_cost_time_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = started(compiling())
    cache.path.mkdir()  # a folder where the file should be
    cache.save()
    assert cache.path.is_dir()
