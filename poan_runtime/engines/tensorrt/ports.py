"""The one input and the one output of an engine."""

import dataclasses
from typing import Any

from poan_runtime.engines.backend import check_shapes
from poan_runtime.engines.tensorrt.library import Library
from poan_runtime.errors import PoanError
from poan_runtime.models.find import Model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ports:
    """Names of the input and output, rows of a batch, and the shape of one row."""

    input: str
    output: str
    batch: int
    row_in: tuple[int, ...]
    row_out: tuple[int, ...]


def deserialised(model: Model, plan: bytes, library: Library) -> Any:
    """The engine of a plan, in the current context."""
    library.log.clear()
    engine = library.api.Runtime(library.logger).deserialize_cuda_engine(plan)
    if engine is None:
        raise PoanError(
            f"{model.path}: {library.flavour} cannot load it: {library.last_error()}; "
            "export it again"
        )
    return engine


def find_ports(model: Model, library: Library, engine: Any) -> Ports:
    """Input and output of the engine, which must be those that the manifest names."""
    manifest, api = model.manifest, library.api
    names = {
        mode: [
            name
            for name in map(engine.get_tensor_name, range(engine.num_io_tensors))
            if engine.get_tensor_mode(name) == mode
        ]
        for mode in (api.TensorIOMode.INPUT, api.TensorIOMode.OUTPUT)
    }
    expected = [[manifest.input_name], [manifest.output_name]]
    if list(names.values()) != expected:
        raise PoanError(f"{model.path}: expected tensors {expected}, got {[*names.values()]}")
    shape_in, shape_out = (
        list(engine.get_tensor_shape(name)) for name in (manifest.input_name, manifest.output_name)
    )
    check_shapes(model, shape_in, shape_out)
    for name in (manifest.input_name, manifest.output_name):
        if engine.get_tensor_dtype(name) != api.DataType.FLOAT:
            raise PoanError(f"{model.path}: expected float32 for {name!r}; export it again")
    _, best, _ = engine.get_tensor_profile_shape(manifest.input_name, 0)
    return Ports(
        input=manifest.input_name,
        output=manifest.output_name,
        batch=best[0],
        row_in=tuple(shape_in[1:]),
        row_out=tuple(shape_out[1:]),
    )
