"""OpenVINO on a CPU, in float32 unless bf16 is asked for."""

from collections.abc import Callable
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from poan_runtime.backend import BackendOptions, OpenedBackend, check_shapes
from poan_runtime.errors import PoanError
from poan_runtime.model import Model
from poan_runtime.tile_by_tile import TileByTile, usable_cores


def open_backend(model: Model, options: BackendOptions) -> OpenedBackend:
    """Compile for this CPU: one stream of one thread for each core, one tile at a time in each.

    The precision hint is always set: left alone, OpenVINO takes bf16 on CPUs that have it,
    which is outside of the parity verdict. The batch is fixed at one tile, for elementwise
    operations are fused only where shapes are known. The graph must have one input and one
    output.
    """
    threads = options.threads or usable_cores()
    core = openvino.Core()
    try:
        graph = core.read_model(model.path)
        check_shapes(model, _shape(graph.input()), _shape(graph.output()))
        tile = model.manifest.tile
        graph.reshape([1, 1, tile, tile])
        compiled = core.compile_model(graph, "CPU", settings(threads))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise PoanError(f"{model.path}: openvino cannot load it: {reason}") from None
    return OpenedBackend(
        backend=TileByTile([engine(compiled.create_infer_request()) for _ in range(threads)]),
        name="openvino",
        device="cpu",
        version=openvino.__version__,
        reason="float32 on the CPU",
    )


def settings(threads: int) -> dict[str, Any]:
    """How a graph is compiled."""
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "NUM_STREAMS": threads,
        "INFERENCE_NUM_THREADS": threads,
    }


def engine(request: Any) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """What runs one tile through an infer request and gives an answer of its own."""

    def run(tile: NDArray[np.float32]) -> NDArray[np.float32]:
        (answer,) = request.infer([tile], share_inputs=True).values()
        return np.array(answer, np.float32)

    return run


def _shape(port: Any) -> list[int | None]:
    return [None if n.is_dynamic else n.get_length() for n in port.get_partial_shape()]
