"""What the backend asks of TensorRT, against the real tensorrt-rtx: names, enums, signatures."""

import numpy as np
import pytest

from poan_export.plans.build import BuiltPlan
from poan_runtime import extras
from poan_runtime.engines.tensorrt import library as tensorrt_library
from poan_runtime.engines.tensorrt.check import HEADER_BYTES, REMEDIES, diagnostics
from poan_runtime.engines.tensorrt.library import load_library
from poan_runtime.errors import PoanError

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
        ("IExecutionContext", ["set_input_shape", "set_tensor_address", "execute_async_v3"]),
        (
            "IRuntimeConfig",
            ["cuda_graph_strategy", "create_runtime_cache", "set_runtime_cache"],
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
    command = extras.command("tensorrt")
    assert str(refusal.value) == f"tensorrt_that_is_not_there is missing; run: {command}"
