"""A look inside an engine: a twin plan whose inner tensors come out, built and run to verify.

Behind a softmax gate the output hides a wrong matrix root almost entirely, so that a verdict from
the output alone cannot fail on it. The twin is built from the same ONNX file, by the same
library, for the same batch and GPU. Not run: no GPU was at hand; the twin's build is real.
"""

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from poan_runtime.engines.backend import Tiles
from poan_runtime.engines.tensorrt import cuda
from poan_runtime.engines.tensorrt.build.plan import Order, build_plan
from poan_runtime.engines.tensorrt.check import engine_facts
from poan_runtime.engines.tensorrt.kernels import KernelCache
from poan_runtime.engines.tensorrt.library import load_library
from poan_runtime.engines.tensorrt.ports import deserialised
from poan_runtime.errors import PoanError
from poan_runtime.models.find import Model, find_model

Taps = dict[str, Tiles]
Shapes = Mapping[str, tuple[int, ...]]


def twin_order(model: Model, stages: Sequence[str], plan: Path) -> Order:
    """The order for a plan's twin, from the ONNX file that the plan was built from."""
    engine, folder = engine_facts(model), model.path.parent
    sources = [f for f in model.manifest.files if f.sha256 == engine.source_onnx_sha256]
    if not sources:
        raise PoanError(f"{model.path}: its ONNX file is not in the manifest; poan-build it here")
    find_model(folder / sources[0].name, judged=False)  # checks the hash
    rtx = engine.flavour == "tensorrt-rtx"
    return Order(
        onnx=folder / sources[0].name,
        plan=plan,
        flavour=engine.flavour,
        precision=model.file.precision,
        islands=model.file.islands,
        batch=engine.profile,
        sms=tuple(c.replace(".", "") for c in engine.compute_capabilities) if rtx else (),
        outputs=tuple(stages),
    )


def look_inside(
    model: Model, cases: Mapping[str, Tiles], stages: Sequence[str], index: int | None = None
) -> dict[str, Taps]:
    """For each case its stages, (n, ...) each, on GPU ``index``."""
    gpu = cuda.find_gpu(index)
    library = load_library(engine_facts(model).flavour)
    home = cuda.Home(gpu)
    with contextlib.ExitStack() as owner:
        owner.callback(home.leave)
        scratch = owner.enter_context(tempfile.TemporaryDirectory())
        owner.enter_context(home.entered())
        built = build_plan(twin_order(model, stages, Path(scratch) / "inside.plan"))
        engine = deserialised(model, built.order.plan.read_bytes(), library)
        cache = KernelCache(library, gpu, built.manifest_entry().sha256)
        names = (model.manifest.input_name, model.manifest.output_name, *stages)
        batch = built.order.batch.opt
        shapes = {name: (batch, *tuple(engine.get_tensor_shape(name))[1:]) for name in names}
        run = Inside(cache.context(engine), shapes, model.manifest.input_name, owner)
        return {case: run.stages(tiles, stages) for case, tiles in cases.items()}


class Inside:
    """A context with a buffer for each tensor; the first of ``shapes`` is a whole batch."""

    def __init__(
        self, context: Any, shapes: Shapes, source: str, owner: contextlib.ExitStack
    ) -> None:
        self._context, self._source = context, source
        self._stream = cuda.Stream(owner)
        self._buffers = {name: cuda.Buffer(shape, owner) for name, shape in shapes.items()}
        if not context.set_input_shape(source, shapes[source]):
            raise PoanError(f"the engine takes no batch of shape {shapes[source]}")
        for name, buffer in self._buffers.items():
            context.set_tensor_address(name, buffer.device)
        size = context.update_device_memory_size_for_shapes()
        scratch = cuda.Memory(size, "activations to look inside", owner)
        if size:
            context.set_device_memory(scratch.address, size)

    def stages(self, tiles: Tiles, names: Sequence[str]) -> Taps:
        """The stages of tiles (n, 1, h, w), each tile as a whole batch, its first row kept."""
        rows: dict[str, list[Tiles]] = {name: [] for name in names}
        for tile in tiles:
            self._buffers[self._source].host[:] = tile
            self._buffers[self._source].upload(self._stream)
            if not self._context.execute_async_v3(int(self._stream.handle)):
                raise PoanError("the engine refused to run a batch")
            for name in names:
                self._buffers[name].download(self._stream)
            self._stream.wait()
            for name in names:
                rows[name].append(self._buffers[name].host[0].copy())
        return {name: np.stack(found) for name, found in rows.items()}
