"""OpenVINO on a CPU, in float32 unless bf16 is asked for."""

from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from poan_runtime.backend import BackendOptions, OpenedBackend, check_shapes
from poan_runtime.errors import PoanError
from poan_runtime.model import Model


class OpenVinoBackend:
    """One compiled model and its infer request."""

    def __init__(self, request: Any) -> None:
        self._request = request

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Backend.run`."""
        results = self._request.infer([batch], share_inputs=True)
        return np.array(results[0], np.float32)


def open_backend(model: Model, options: BackendOptions) -> OpenedBackend:
    """Compile for this CPU.

    The precision hint is always set: left alone, OpenVINO takes bf16 on CPUs that have it,
    which is outside of the parity verdict. The graph must have one input and one output.
    """
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if options.threads is not None:
        settings["INFERENCE_NUM_THREADS"] = options.threads
    core = openvino.Core()
    try:
        graph = core.read_model(model.path)
        check_shapes(model, _shape(graph.input()), _shape(graph.output()))
        compiled = core.compile_model(graph, "CPU", settings)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise PoanError(f"{model.path}: openvino cannot load it: {reason}") from None
    return OpenedBackend(
        backend=OpenVinoBackend(compiled.create_infer_request()),
        name="openvino",
        device="cpu",
        version=openvino.__version__,
        reason="float32 on the CPU",
    )


def _shape(port: Any) -> list[int | None]:
    return [None if n.is_dynamic else n.get_length() for n in port.get_partial_shape()]
