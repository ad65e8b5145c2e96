"""Weights outside of the model's folder are not read, whatever the graph says."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from poan_runtime.commands.run import main
from poan_runtime.engines.backend import EngineOptions, open_backend
from poan_runtime.errors import PoanError
from poan_runtime.models.find import Model, Trust, find_model
from poan_runtime.models.weights_outside import locations
from tests.tiny.models import IDENTITY, graph

OUTSIDE = ["../outside.bin", "{outside}", "link.bin", "links/outside.bin", "..././outside.bin"]
Graph = Callable[..., Path]


@pytest.fixture
def graph_of(tmp_path: Path) -> Graph:
    """A graph whose weights lie in a file of their own, in a folder with links to its parent."""
    outside, folder = tmp_path / "outside.bin", tmp_path / "model"
    folder.mkdir()
    for path in (outside, folder / "inside.bin"):
        path.write_bytes(IDENTITY.astype(np.float32).tobytes())
    (folder / "link.bin").symlink_to(outside)
    (folder / "links").symlink_to(tmp_path)

    def write(location: str, *, in_a_node: bool = False) -> Path:
        model = graph(2, 16, IDENTITY)
        weights = model.graph.initializer[0]
        weights.ClearField("float_data")
        weights.data_location = onnx.TensorProto.EXTERNAL
        entries = {"offset": "0", "location": location.format(outside=outside), "length": "36"}
        for key, value in entries.items():
            entry = weights.external_data.add()
            entry.key, entry.value = key, value
        if in_a_node:
            node = helper.make_node("Constant", [], [weights.name], value=weights)
            model.graph.node.insert(0, node)
            del model.graph.initializer[0]
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        return folder / "model.onnx"

    return write


def trusted(path: Path) -> Model:
    return find_model(path, Trust(scale=2, tile=16))


@pytest.mark.parametrize("in_a_node", [False, True])
@pytest.mark.parametrize("location", OUTSIDE)
def test_weights_outside_of_the_folder_are_refused_before_any_engine_sees_them(
    location: str, in_a_node: bool, graph_of: Graph
) -> None:
    with pytest.raises(PoanError, match="its weights are out of its folder: ") as refused:
        trusted(graph_of(location, in_a_node=in_a_node))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("location", OUTSIDE[:3])
def test_the_engines_installed_here_refuse_them_too(
    backend: str, location: str, graph_of: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(backend)
    monkeypatch.setattr("poan_runtime.models.find.refuse_weights_outside", lambda path: None)
    with pytest.raises(PoanError, match="cannot load it") as refused:
        open_backend(trusted(graph_of(location)), EngineOptions(backend=backend, threads=1))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_weights_in_the_folder_are_read(backend: str, graph_of: Graph) -> None:
    pytest.importorskip(backend)
    opened = open_backend(
        trusted(graph_of("inside.bin")), EngineOptions(backend=backend, threads=1)
    )
    tiles = np.random.default_rng(0).random((1, 1, 16, 16), np.float32)
    np.testing.assert_array_equal(opened.backend.run(tiles)[..., ::2, ::2], tiles)


def test_poan_run_refuses_them_in_one_line(
    graph_of: Graph, make_scan: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    scan = make_scan()
    arguments = [str(graph_of("../outside.bin")), str(scan), "--trust", "--scale", "2"]
    assert main([*arguments, "--tile", "16"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("its weights are out of its folder: ../outside.bin")
    assert sorted(scan.parent.glob("*_desc-sr*")) == []


def test_tensors_are_found_wherever_a_graph_can_hold_them() -> None:
    def tensor(name: str) -> onnx.TensorProto:
        made = helper.make_tensor(name, onnx.TensorProto.FLOAT, [1], [1.0])
        entry = made.external_data.add()
        entry.key, entry.value = "location", name
        return made

    inner = helper.make_graph([], "inner", [], [], initializer=[tensor("branch")])
    sparse = onnx.SparseTensorProto(values=tensor("values"), indices=tensor("indices"))
    nodes = [
        helper.make_node("Constant", [], ["a"], value=tensor("value")),
        helper.make_node("If", ["c"], ["b"], then_branch=inner, else_branch=inner),
        helper.make_node("Constant", [], ["d"], sparse_value=sparse),
    ]
    outer = helper.make_graph(nodes, "outer", [], [], initializer=[tensor("initializer")])
    outer.sparse_initializer.append(sparse)
    function = helper.make_function("own", "f", [], [], nodes[:1], [])
    model = helper.make_model(outer, functions=[function])
    found = sorted(locations(memoryview(model.SerializeToString())))
    expected = ["branch"] * 2 + ["indices", "values"] * 2 + ["value"] * 2 + ["initializer"]
    assert found == sorted(expected)
