"""OpenVINO on a CPU: float32, or bf16 where the manifest has a passing verdict for it."""

from typing import Any

from poan_runtime.engines.backend import EngineOptions, OpenedBackend, check_shapes
from poan_runtime.engines.cores import TileByTile, usable_cores
from poan_runtime.engines.openvino.library import core, openvino
from poan_runtime.engines.openvino.pieces import compile_chains
from poan_runtime.errors import PoanError
from poan_runtime.models.find import Model


def open_backend(model: Model, options: EngineOptions) -> OpenedBackend:
    """Compile for this CPU: one stream of one thread for each core, one tile at a time in each.

    The graph must have one input and one output.
    """
    reduced = options.reduced
    precision = "fp32" if reduced.entry is None else reduced.entry.precision
    threads = options.threads or usable_cores()
    try:
        graph = core().read_model(model.path)
        check_shapes(model, _shape(graph.input()), _shape(graph.output()))
        chains = compile_chains(
            graph,
            tile=model.manifest.tile,
            precision=precision,
            float32_parts=() if reduced.entry is None else reduced.entry.float32_parts,
            threads=threads,
        )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise PoanError(f"{model.path}: openvino cannot load it: {reason}") from None
    fallback = options.precision == "bf16" and reduced.entry is None
    own = model.file.precision  # in eight bits, the convolutions stay so
    reason = reduced.reason if reduced.entry else f"{precision}: {reduced.reason}"
    return OpenedBackend(
        backend=TileByTile(chains),
        name="openvino",
        device="cpu",
        version=openvino.__version__,
        reason=reason if own == "fp32" else f"convolutions in {own}, {reason}",
        notices=(f"{reduced.reason}: running in float32",) if fallback else (),
        precision=precision if own == "fp32" or reduced.entry else None,
    )


def _shape(port: Any) -> list[int | None]:
    return [None if n.is_dynamic else n.get_length() for n in port.get_partial_shape()]
