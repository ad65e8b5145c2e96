"""What the shipped models answer where products are computed in TF32: why it is off everywhere.

TF32 keeps 10 bits of each operand's fraction and sums in float32. That is emulated by ONNX
Runtime on the CPU: every operand of a product is split as x = high + low by Veltkamp's method
(c = (2^13 + 1) x, high = c - (c - x)), and the high part takes its place.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from poan_export.rewrite.root import Quintic
from poan_runtime.models.find import shipped_models

PRODUCTS = ("MatMul", "Gemm")
Tiles = NDArray[np.float32]


def in_tf32(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the operands of every matrix product rounded to TF32."""
    split = numpy_helper.from_array(np.float32(2**13 + 1), "tf32.split")
    nodes, high = [], {}
    for node in model.graph.node:
        for index in range(2 if node.op_type in PRODUCTS else 0):
            name = node.input[index]
            if name not in high:
                high[name] = f"{name}.high"
                for kind, inputs, output in (
                    ("Mul", [name, split.name], f"{name}.c"),
                    ("Sub", [f"{name}.c", name], f"{name}.low"),
                    ("Sub", [f"{name}.c", f"{name}.low"], high[name]),
                ):
                    nodes.append(helper.make_node(kind, inputs, [output]))
            node.input[index] = high[name]
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(split)
    return model


def answer(model: onnx.ModelProto, tile: Tiles) -> Tiles:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found: Tiles = session.run(None, {model.graph.input[0].name: tile})[0]
    return found


def test_the_emulation_keeps_ten_bits() -> None:
    rounded = in_tf32(
        helper.make_model(
            helper.make_graph(
                [helper.make_node("MatMul", ["a", "one"], ["y"])],
                "g",
                [helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, [1, 1])],
                [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 1])],
                [numpy_helper.from_array(np.ones((1, 1), np.float32), "one")],
            ),
            opset_imports=[helper.make_opsetid("", 20)],
            ir_version=10,
        )
    )
    for value, kept in ((1 + 2**-10, 1 + 2**-10), (1 + 2**-12, 1.0), (1 + 3 * 2**-12, 1 + 2**-10)):
        assert answer(rounded, np.float32([[value]])) == kept


FINITE = {
    ("mr_x2", "edge"): 0.01,
    ("t1_x2", "zeros"): 1.0,
    ("t2_x2", "zeros"): 1.0,
    ("t1_x4", "edge"): 0.03,
}
"""Where the roots survive, and how far off the answer then is at least, relative to its largest."""


@pytest.mark.parametrize("folder", shipped_models(), ids=lambda folder: folder.name)
def test_a_shipped_model_answers_air_and_edges_wrongly_in_tf32(folder: Path) -> None:
    """Should this fail because a root now survives: say so in the model card and in `FINITE`."""
    exact, rounded = onnx.load(folder / "model.onnx"), in_tf32(onnx.load(folder / "model.onnx"))
    tile = exact.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    zeros, edge = np.zeros((2, 1, 1, tile, tile), np.float32)
    edge[..., tile // 2 :] = 1
    for name, hard in (("zeros", zeros), ("edge", edge)):
        right, found = answer(exact, hard), answer(rounded, hard)
        assert np.isfinite(right).all()
        if (folder.name, name) in FINITE:
            assert np.abs(found - right).max() > FINITE[folder.name, name] * np.abs(right).max()
        else:
            assert not np.isfinite(found).all()


def high(x: torch.Tensor) -> torch.Tensor:
    """x rounded to TF32."""
    c = (2**13 + 1) * x
    return c - (c - x)


def one_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return MATMUL(high(a), high(b))


def three_products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of operands split in high and low parts: all but the product of the two low ones."""
    low_a, low_b = high(a - high(a)), high(b - high(b))
    return MATMUL(high(a), high(b)) + (MATMUL(high(a), low_b) + MATMUL(low_a, high(b)))


MATMUL = torch.matmul


@pytest.mark.parametrize(
    ("product", "eps", "least", "most"),
    [
        (one_product, 1e-3, np.nan, np.nan),
        (one_product, 1e-2, 1e-3, 1e-1),
        (three_products, 1e-3, 0.0, 3e-4),
    ],
)
def test_no_root_survives_tf32_for_free(
    product: Callable[..., torch.Tensor],
    eps: float,
    least: float,
    most: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The covariance of an edge has rank one, and rounding is larger than what eps adds.

    One product answers NaN at the model's eps, and is off by about a percent at ten times that;
    three products are as exact as float32 (1e-4) at three times the cost.
    """
    monkeypatch.setattr(torch, "bmm", product)
    u = np.random.default_rng(0).normal(size=(64, 1))
    sigma = u @ u.T
    sigma += eps * np.trace(sigma) / 64 * np.eye(64)
    values, vectors = np.linalg.eigh(sigma)
    exact = (vectors * np.sqrt(values)) @ vectors.T
    found = Quintic(7)(torch.tensor(sigma[None], dtype=torch.float32))[0].numpy()
    error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    assert np.isnan(error) if np.isnan(most) else least <= error <= most
