"""The benchmarks' engines against those of poan-run."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.engines import load, root_parts
from benchmarks.parts import cut, features_at, read_for_one_tile
from poan_runtime.engines.backend import EngineOptions, open_backend
from poan_runtime.engines.precision import cpu_has_bf16
from poan_runtime.models.find import find_model
from tests.tiny.networks import TILE

pytest.importorskip("openvino")
LR = np.random.default_rng(0).random((1, 1, TILE, TILE), np.float32)


@pytest.mark.parametrize("engine", ["openvino-f32", "openvino-bf16"])
def test_openvino_answers_a_whole_network_as_poan_run_does(
    engine: str, tiny: tuple[Path, Path]
) -> None:
    if engine == "openvino-bf16" and not cpu_has_bf16():
        pytest.skip("this CPU has no bf16")
    precision = {"openvino-f32": "fp32", "openvino-bf16": "bf16"}[engine]
    options = EngineOptions(backend="openvino", precision=precision, threads=1)
    expected = open_backend(find_model(tiny[1]), options).backend.run(LR)
    (run,) = load(engine, read_for_one_tile(tiny[1] / "model.onnx", TILE), 1)
    np.testing.assert_array_equal(run({"lr": LR})[0], expected)


def test_the_root_of_a_part_stays_in_float32_where_the_rest_is_bf16(
    tiny: tuple[Path, Path],
) -> None:
    graph = read_for_one_tile(tiny[1] / "model.onnx", TILE)
    ((features, z),) = root_parts(graph)
    (root,) = [part for part in cut(graph) if part.belongs_to == "square root"]
    assert root.inputs == [features]
    feed = features_at(graph, [features, z], LR)
    (run,) = load("openvino-bf16", root.graph, 1)
    found = next(iter(run({features: feed[features]}).values()))
    # float32 rounding; a root with products in bf16 is 2 % off or not finite
    np.testing.assert_allclose(found, feed[z], rtol=0, atol=1e-3 * np.abs(feed[z]).max())
