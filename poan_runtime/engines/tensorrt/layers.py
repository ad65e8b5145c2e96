"""What each layer of an engine takes, as the library's own profiler tells it. Not run: no GPU.

A context of its own runs without a graph, since neither product profiles inside one, and reports
each layer after each batch. What it reports adds up to more than a batch takes otherwise.
"""

import contextlib
import dataclasses
import json
from typing import Any

import numpy as np

from poan_runtime.engines.backend import Tiles
from poan_runtime.engines.tensorrt.lanes import Lane
from poan_runtime.engines.tensorrt.library import Library
from poan_runtime.engines.tensorrt.ports import Ports

WARM_UP = 2
"""Batches whose reports are forgotten: kernels are compiled in the first."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layers:
    """``median_ms`` of each layer by its name, in order; ``information`` is the inspector's."""

    median_ms: dict[str, float]
    information: Any


def profiler_of(library: Library) -> Any:
    """A profiler of this library, which keeps milliseconds by layer in its ``found``."""
    api: Any = library.api

    class Keeps(api.IProfiler):  # type: ignore[misc]
        """Called once per layer and batch."""

        def __init__(self) -> None:
            api.IProfiler.__init__(self)
            self.found: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.found.setdefault(layer_name, []).append(ms)

    return Keeps()


def layers_of(
    library: Library, engine: Any, context: Any, ports: Ports, batch: Tiles, count: int
) -> Layers:
    """Run ``count`` batches in ``context``, which is then used up; in the current CUDA context."""
    profiler = profiler_of(library)
    context.profiler = profiler
    lane = Lane(context, ports, graphs=False)
    try:
        for turn in range(WARM_UP + count):
            if turn == WARM_UP:
                profiler.found.clear()
            lane.enqueue(batch)
            lane.result()
    finally:
        lane.release()
    medians = {name: float(np.median(times)) for name, times in profiler.found.items()}
    return Layers(median_ms=medians, information=information_of(library, engine))


def information_of(library: Library, engine: Any) -> Any:
    """Each layer's tensors, kernel and origin, as far as the plan was built to tell."""
    text = engine.create_engine_inspector().get_engine_information(
        library.api.LayerInformationFormat.JSON
    )
    with contextlib.suppress(ValueError):
        return json.loads(text)
    return text
