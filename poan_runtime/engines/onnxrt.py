"""ONNX Runtime on its CPU, CUDA and TensorRT providers.

The providers other than the CPU's were not run: no GPU was at hand. They compute float32
products in TF32 unless told otherwise, and the matrix root answers NaN in TF32.
"""

import os
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from poan_runtime import extras
from poan_runtime.engines.backend import Backend, EngineOptions, OpenedBackend, check_shapes
from poan_runtime.engines.cores import TileByTile, usable_cores
from poan_runtime.engines.nvidia import device_index, device_kind, gpu_name, has_gpu
from poan_runtime.engines.verdicts import check_verdict
from poan_runtime.errors import PoanError
from poan_runtime.files import cache_folder
from poan_runtime.models.find import ONLY_PORT, Model

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
NAMED = {"onnxruntime-tensorrt": TENSORRT}
"""Providers that run only when their backend is named, and then nothing else in their place."""
ERRORS_ONLY, NOTHING = 3, 4


class OnnxRuntimeBackend(Backend):
    """One session."""

    def __init__(self, session: Any, input_name: str, output_name: str) -> None:
        self._session = session
        self._input = input_name
        self._output = output_name

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Backend.run`."""
        try:
            (out,) = self._session.run([self._output], {self._input: batch})
        except Exception as error:
            if not type(error).__module__.startswith("onnxruntime"):
                raise
            reason = str(error).strip().splitlines()[0]
            raise PoanError(f"onnxruntime cannot run it: {reason}") from None
        return np.asarray(out, np.float32)


def open_backend(model: Model, options: EngineOptions) -> OpenedBackend:
    """A session on the GPU where one can be reached and was not declined, else on the CPU.

    A device ``auto`` means a GPU only where the file is proven on it. As ``onnxruntime-tensorrt``
    it runs on that provider or not at all.
    """
    available = onnxruntime.get_available_providers()
    index = device_index(options.device) or 0
    name = options.backend if options.backend != "auto" else "onnxruntime"
    here = (name, gpu_name(index), onnxruntime.__version__)
    wanted = _providers(options, available)
    notices: list[str] = []
    if wanted[0] != CPU and options.judged:
        notices += check_verdict(model, *here)
        if notices and options.device == "auto" and options.backend not in NAMED:
            wanted = [CPU]
    session = _session(model, options, wanted)
    used = session.get_providers()[0]
    if used != wanted[0]:
        if device_kind(options.device) == "cuda" or wanted[0] in NAMED.values():
            raise PoanError(f"{wanted[0]} did not start; onnxruntime says why above")
        notices.append(f"{wanted[0]} did not start; running on {used}")
    backend: Backend = OnnxRuntimeBackend(session, *_names(model, session))
    if used == CPU:
        backend = TileByTile([backend.run] * (options.threads or usable_cores()))
    return OpenedBackend(
        backend=backend,
        name=name,
        device="cpu" if used == CPU else f"cuda:{index} ({gpu_name(index)})",
        version=onnxruntime.__version__,
        reason=f"{used} is the first provider that started",
        notices=tuple(notices),
    )


def _providers(options: EngineOptions, available: list[str]) -> list[str]:
    """Providers to try in order; the first is the one that is wanted."""
    if options.backend in NAMED:
        wanted = [NAMED[options.backend], CUDA, CPU]
    elif options.device == "cpu":
        wanted = [CPU]
    elif device_kind(options.device) == "cuda":
        wanted = [CUDA, CPU]
    else:
        return [CUDA, CPU] if CUDA in available and has_gpu() else [CPU]
    if wanted[0] not in available:
        raise PoanError(f"this onnxruntime has no {wanted[0]}; {remedy(available)}")
    return wanted


def remedy(available: list[str]) -> str:
    """How to come by the provider that is missing.

    onnxruntime and onnxruntime-gpu write into one folder, and removing one leaves holes in the
    other: both go before one comes.
    """
    if CUDA in available:
        return "take --backend onnxruntime, which runs on CUDA alone, or a plan"
    return f"run: pip uninstall -y onnxruntime onnxruntime-gpu, then {extras.command('gpu')}"


def _session(model: Model, options: EngineOptions, providers: list[str]) -> Any:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = ERRORS_ONLY
    if model.file.precision == "fp8":
        # seen in 1.32: the extended optimisations drop a ReLU before an fp8 Q, silently
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if providers == [CPU]:
        settings.intra_op_num_threads = 1  # `TileByTile` has the threads
        settings.log_severity_level = NOTHING  # what it refuses is in the exception
    elif options.threads is not None:
        settings.intra_op_num_threads = options.threads
    if providers != [CPU]:
        _prepare_gpu()
    try:
        return onnxruntime.InferenceSession(
            str(model.path),
            settings,
            providers=providers,
            provider_options=[provider_options(model, name, options) for name in providers],
            enable_fallback=int(providers != [CPU]),  # which prints, and tries the same again
        )
    except Exception as error:
        own = type(error).__module__.startswith("onnxruntime")
        not_text = isinstance(error, UnicodeDecodeError)  # a name in the graph
        if not (own or not_text):
            raise
        reason = str(error).strip().splitlines()[0]
        raise PoanError(f"{model.path}: onnxruntime cannot load it: {reason}") from None


def _prepare_gpu() -> None:
    """Before the first session: TF32 off in cuBLAS and cuDNN, and NVIDIA's wheels loaded.

    The TensorRT provider has no option for TF32; its libraries read the variable as they start.
    """
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
    preload = getattr(onnxruntime, "preload_dlls", None)
    if preload is not None:
        preload()


def provider_options(model: Model, provider: str, options: EngineOptions) -> dict[str, str]:
    """What a provider must be told: no TF32, which GPU, and no more memory than is asked for.

    TensorRT's is told of the batches to build for, and where to keep what it built.
    """
    if provider == CPU:
        return {}
    device = {"device_id": str(device_index(options.device) or 0)}
    if provider == CUDA:
        return {
            **device,
            "use_tf32": "0",
            "cudnn_conv_algo_search": "HEURISTIC",
            "arena_extend_strategy": "kSameAsRequested",
        }
    manifest, folder = model.manifest, str(cache_folder())
    shapes = {
        key: f"{manifest.input_name}:{count}x1x{manifest.tile}x{manifest.tile}"
        for key, count in manifest.batch.json().items()
    }
    return {
        **device,
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": folder,
        **{f"trt_profile_{key}_shapes": shape for key, shape in shapes.items()},
    }


def _names(model: Model, session: Any) -> tuple[str, str]:
    """Names of the graph's input and output, whose shapes must fit the manifest."""
    try:
        inputs, outputs = session.get_inputs(), session.get_outputs()
        source = _port(model, "input", inputs, model.manifest.input_name)
        target = _port(model, "output", outputs, model.manifest.output_name)
        check_shapes(model, source.shape, target.shape)
    except UnicodeDecodeError:
        raise PoanError(f"{model.path}: a name in the graph is not valid text") from None
    return source.name, target.name


def _port(model: Model, what: str, ports: list[Any], name: str) -> Any:
    if name == ONLY_PORT and len(ports) == 1:
        return ports[0]
    found = [port for port in ports if port.name == name]
    if not found:
        names = [port.name for port in ports]
        wanted = f"an {what} named {name}" if name else f"one {what}"
        raise PoanError(f"{model.path}: expected {wanted}, got {names}")
    return found[0]
