"""What each layer takes: the real library's profiler, in a lane on host stand-ins."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cuda.bindings", reason="needs cuda-python")

from poan_runtime.engines.tensorrt.backend import TensorRTBackend
from poan_runtime.engines.tensorrt.kernels import KernelCache
from poan_runtime.engines.tensorrt.layers import WARM_UP, information_of, profiler_of
from poan_runtime.engines.tensorrt.library import load_library
from tests.runtime.engines.tensorrt.test_lanes import LOG, PORTS, Home, Repeats, host, tiles
from tests.runtime.engines.tensorrt.test_library import Engine, gpu

__all__ = ["host"]
trt = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")


class Reports(Repeats):
    """Reports two layers after each batch: the first is slow until it is warm."""

    def __init__(self) -> None:
        super().__init__()
        self.profiler: Any = None
        self.turn = 0

    def execute_async_v3(self, stream: int) -> bool:
        self.profiler.report_layer_time("conv", 100.0 if self.turn < WARM_UP else self.turn)
        self.profiler.report_layer_time("softmax", 0.5)
        self.turn += 1
        return super().execute_async_v3(stream)


class Inspected:
    """An engine whose inspector knows one layer."""

    def create_engine_inspector(self) -> Any:
        def information(form: Any) -> str:
            assert form == trt.LayerInformationFormat.JSON
            return json.dumps({"Layers": [{"Name": "conv"}]})

        return SimpleNamespace(get_engine_information=information)


class Cache:
    """Gives contexts that report, and remembers whether graphs were asked for."""

    library = load_library("tensorrt-rtx")

    def __init__(self) -> None:
        self.graphs: list[bool] = []

    def context(self, engine: Any, *, graphs: bool = True) -> Reports:
        self.graphs.append(graphs)
        return Reports()

    def save(self) -> None:
        """Nothing to keep."""


def test_each_layers_median_is_that_of_warm_batches_and_the_lane_is_freed(host: None) -> None:
    cache: Any = Cache()
    home: Any = Home()
    engine = TensorRTBackend(Inspected(), PORTS, cache, home, graphs=True)
    found = engine.layers(tiles(2), 3)
    assert found.median_ms == {"conv": WARM_UP + 1, "softmax": 0.5}
    assert found.information == {"Layers": [{"Name": "conv"}]}
    assert cache.graphs == [False]  # no graph is profiled
    assert LOG.count("stream released") == 1
    assert (LOG[0], LOG[-1]) == ("pushed", "popped")


def test_the_profiler_is_one_that_the_real_library_takes() -> None:
    profiler = profiler_of(load_library("tensorrt-rtx"))
    assert isinstance(profiler, trt.IProfiler)
    profiler.report_layer_time("conv", 2.0)
    assert profiler.found == {"conv": [2.0]}
    assert hasattr(trt.IExecutionContext, "profiler")
    assert hasattr(trt.ICudaEngine, "create_engine_inspector")


def test_what_the_inspector_says_in_no_json_is_kept_as_it_is() -> None:
    engine = SimpleNamespace(
        create_engine_inspector=lambda: SimpleNamespace(
            get_engine_information=lambda form: "[conv, softmax"
        )
    )
    assert information_of(load_library("tensorrt-rtx"), engine) == "[conv, softmax"


def test_a_context_without_graphs_shares_the_kernels_of_one_with() -> None:
    engine = Engine()
    cache = KernelCache(load_library("tensorrt-rtx"), gpu(), "0" * 64)
    cache.context(engine, graphs=False)
    settings: Any = engine.settings
    assert settings.cuda_graph_strategy == trt.CudaGraphStrategy.DISABLED
    cache.context(engine)
    assert settings.cuda_graph_strategy == trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    assert np.size(settings.told["cache"]) == 1
