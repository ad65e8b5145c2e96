"""The exported graph: what it holds, what batches it takes, and constants that must survive."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from poan_export.gate.parity import run_onnx
from poan_export.rewrite.network import rewrite, rules_for
from poan_export.rewrite.root import Scheme
from poan_export.trace.onnx_export import check, export_twin, without_stages
from poan_export.trace.stages import OUTPUT, pools_of
from poan_runtime.errors import PoanError
from tests.tiny.networks import TILE


@pytest.fixture(scope="module")
def twin(network: nn.Module) -> onnx.ModelProto:
    return export_twin(
        rewrite(network, rules_for(Scheme(name="quintic", iterations=8), "box")), TILE
    )


def tiles(n: int) -> np.ndarray:
    return np.random.default_rng(0).random((n, 1, TILE, TILE), np.float32)


def test_the_graph_holds_only_what_every_target_runs(twin: onnx.ModelProto) -> None:
    operators = {node.op_type for node in twin.graph.node}
    assert operators <= {
        "Add", "AveragePool", "Clip", "Concat", "Conv", "DepthToSpace", "Div", "Gather", "Gemm",
        "LeakyRelu", "MatMul", "Mul", "Pad", "Pow", "Reciprocal", "ReduceMean", "ReduceSum",
        "Relu", "Reshape", "Slice", "Softmax", "Sqrt", "Squeeze", "Sub", "Transpose", "Unsqueeze",
    }  # fmt: skip
    assert [opset.version for opset in twin.opset_import if opset.domain == ""] == [20]


def test_shapes_are_fixed_but_for_the_batch(twin: onnx.ModelProto) -> None:
    model = without_stages(twin)
    (lr,), (sr,) = model.graph.input, model.graph.output
    sizes = [[d.dim_param or d.dim_value for d in p.type.tensor_type.shape.dim] for p in (lr, sr)]
    assert sizes == [["batch", 1, TILE, TILE], ["batch", 1, 2 * TILE, 2 * TILE]]


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_a_tile_has_the_same_answer_in_any_batch(twin: onnx.ModelProto, batch: int) -> None:
    session = onnxruntime.InferenceSession(without_stages(twin).SerializeToString())
    x = tiles(batch)
    (together,) = session.run(None, {"lr": x})
    alone = np.concatenate([session.run(None, {"lr": x[i : i + 1]})[0] for i in range(batch)])
    # The same float32 products, blocked differently.
    np.testing.assert_allclose(together, alone, rtol=0, atol=2e-6)


def test_the_shipped_graph_is_the_checked_twin_without_its_stages(twin: onnx.ModelProto) -> None:
    model = without_stages(twin)
    assert len(twin.graph.output) > 1
    assert [output.name for output in model.graph.output] == ["sr"]
    x = tiles(2)
    np.testing.assert_allclose(
        run_onnx(model, x)[OUTPUT], run_onnx(twin, x)[OUTPUT], rtol=0, atol=2e-6
    )


def test_the_floor_of_the_covariance_survives_the_optimiser(network: nn.Module) -> None:
    # An addend below 1e-8 is taken for zero by the ONNX optimiser. Features that are constant
    # have no covariance but the floor, so z is that of a unit matrix: 1 in every channel.
    class Pool(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            rewritten = rewrite(network, rules_for(Scheme(name="quintic", iterations=8), "box"))
            (_, self.pool) = next(iter(pools_of(rewritten).values()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.pool(x.expand(-1, 8, -1, -1))

    model = export_twin(Pool().eval(), TILE)
    z = run_onnx(model, np.full((2, 1, TILE, TILE), 0.5, np.float32))[OUTPUT]
    np.testing.assert_allclose(z, 1.0, rtol=1e-3)


def test_no_path_of_this_machine_is_left_in_the_graph(
    twin: onnx.ModelProto, repository: Path
) -> None:
    content = twin.SerializeToString()
    assert str(repository).encode() not in content
    assert b"site-packages" not in content


@pytest.mark.parametrize("operator", ["NonZero", "Resize", "Col2Im"])
def test_a_graph_with_a_forbidden_node_is_refused_by_name(operator: str) -> None:
    inputs = {"NonZero": ["x"], "Resize": ["x", "", "scales"], "Col2Im": ["x", "size", "block"]}
    constants = [
        helper.make_tensor("scales", TensorProto.FLOAT, [3], [1.0, 2.0, 2.0]),
        helper.make_tensor("size", TensorProto.INT64, [2], [2, 2]),
        helper.make_tensor("block", TensorProto.INT64, [2], [1, 1]),
    ]
    graph = helper.make_graph(
        [helper.make_node(operator, inputs[operator], ["y"], name="culprit")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 4])],
        [helper.make_empty_tensor_value_info("y")],
        [c for c in constants if c.name in inputs[operator]],
    )
    kind = TensorProto.INT64 if operator == "NonZero" else TensorProto.FLOAT
    graph.output[0].CopyFrom(helper.make_tensor_value_info("y", kind, None))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(PoanError, match=rf"holds {operator} \(culprit\)"):
        check(model)
