"""A look inside an engine: the twin's build is real, its run is on host stand-ins."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cuda.bindings", reason="needs cuda-python")
pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")

from poan_runtime.engines.tensorrt import cuda, inside
from poan_runtime.engines.tensorrt.build import builder
from poan_runtime.engines.tensorrt.build.plan import BuiltPlan, build_plan
from poan_runtime.engines.tensorrt.inside import Inside, look_inside, twin_order
from poan_runtime.engines.tensorrt.library import load_library
from poan_runtime.errors import PoanError
from poan_runtime.models.find import find_model
from tests.runtime.engines.tensorrt.test_lanes import (
    LOG,
    MEMORY,
    Home,
    HostBuffer,
    HostMemory,
    HostStream,
)
from tests.runtime.engines.tensorrt.test_library import gpu

TILE, BATCH = 4, 3


def test_the_twin_is_built_as_the_plan_was_and_lets_inner_tensors_out(
    folder: Path, built: BuiltPlan, tmp_path: Path
) -> None:
    model = find_model(folder / "engine.plan")
    order = twin_order(model, ["body.0", "tail"], tmp_path / "inside.plan")
    twin = build_plan(order)
    assert twin.compute_capabilities == built.compute_capabilities
    assert (order.batch, order.precision) == (built.order.batch, built.order.precision)
    # the last block's sum is fused away in the plan; in the twin two more tensors are written
    assert twin.report["layers"] > built.report["layers"]


def test_a_stage_that_the_graph_lacks_is_named(folder: Path, tmp_path: Path) -> None:
    model = find_model(folder / "engine.plan")
    with pytest.raises(PoanError, match=r"no tensor 'body\.7\.z' to look at"):
        build_plan(twin_order(model, ["body.7.z"], tmp_path / "inside.plan"))


def test_a_plan_whose_onnx_file_is_gone_from_the_manifest_is_refused(
    folder: Path, edit_manifest: Any, tmp_path: Path
) -> None:
    edit_manifest(lambda m: m["files"][2]["engine"].update(source_onnx_sha256="0" * 64))
    with pytest.raises(PoanError, match="its ONNX file is not in the manifest"):
        twin_order(find_model(folder / "engine.plan"), ["body.0"], tmp_path / "inside.plan")


class Context:
    """Writes twice the input to z, and its sum over each row of the batch."""

    def __init__(self) -> None:
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        return shape == (BATCH, 1, TILE, TILE)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def update_device_memory_size_for_shapes(self) -> int:
        return 8

    def set_device_memory(self, memory: int, size: int) -> None:
        LOG.append(f"scratch {size}")

    def execute_async_v3(self, stream: int) -> bool:
        tiles, doubled, sums = (MEMORY[self.addresses[name]] for name in ("lr", "z", "sum"))
        doubled[:] = 2 * tiles
        sums[:] = tiles.sum(axis=(1, 2, 3))[:, None]
        return True


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, stand_in in (("Stream", HostStream), ("Buffer", HostBuffer), ("Memory", HostMemory)):
        monkeypatch.setattr(cuda, name, stand_in)
    LOG.clear()
    MEMORY.clear()


def test_a_twin_that_has_no_room_lets_go_of_the_context(
    folder: Path, built: BuiltPlan, host: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    home: Any = Home()
    monkeypatch.setattr(cuda, "find_gpu", lambda index=None: gpu())
    monkeypatch.setattr(cuda, "Home", lambda found: home)
    monkeypatch.setattr(inside, "build_plan", lambda order: built)
    no_room = cuda.OutOfMemoryError("the GPU has too little memory")

    def refuse(*arguments: object) -> None:
        raise no_room

    monkeypatch.setattr(inside, "deserialised", refuse)
    with pytest.raises(PoanError, match="too little memory"):
        look_inside(find_model(folder / "engine.plan"), {}, ["body.0"])
    assert LOG == ["pushed", "popped", "left"]


def test_stages_come_for_each_tile_and_all_memory_goes(host: None) -> None:
    tiles = np.random.default_rng(0).random((2, 1, TILE, TILE), np.float32)
    shapes = {"lr": (BATCH, 1, TILE, TILE), "z": (BATCH, 1, TILE, TILE), "sum": (BATCH, 1)}
    with ExitStack() as owner:
        found = Inside(Context(), shapes, "lr", owner).stages(tiles, ["z", "sum"])
    assert np.array_equal(found["z"], 2 * tiles)
    assert found["sum"].shape == (2, 1)
    # sums of 16 values below one in whatever order: a few roundings of 16
    np.testing.assert_allclose(found["sum"][:, 0], tiles.sum(axis=(1, 2, 3)), rtol=1e-6)
    assert LOG.count("scratch 8") == 1  # what the context asked for
    assert LOG.count("buffer released") == 3
    assert LOG.count("stream released") == LOG.count("memory released") == 1


def test_inner_tensors_come_out_as_float32_from_a_graph_in_half_precision(folder: Path) -> None:
    """What they are copied to is of that type."""
    library = load_library("tensorrt-rtx")
    trt = library.api
    made = trt.Builder(library.logger)
    network = made.create_network(builder._strongly_typed(trt))
    parser = trt.OnnxParser(network, library.logger)
    assert parser.parse_from_file(str(folder / "model.fp16.onnx"))
    before = network.num_outputs
    builder._mark_outputs(trt, network, ["body.0", "tail"])
    added = [network.get_output(index) for index in range(before, network.num_outputs)]
    assert {port.name: port.dtype for port in added} == dict.fromkeys(
        ["body.0", "tail"], trt.float32
    )
