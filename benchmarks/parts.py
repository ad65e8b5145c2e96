"""An exported network cut into its parts, and the multiply-accumulates of each.

A part is timed as a graph of its own. Engines fuse and rename nodes, each in its way, so a
profile by node would need a map for each engine and version; the cuts lie at the stages whose
names the exporter keeps (`poan_export.trace.stages`), where nothing is fused across
anyway but a sum.
"""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
from onnx import shape_inference
from onnx.utils import Extractor

from poan_runtime.errors import PoanError

CARRIERS = ("Cast", "DequantizeLinear", "QuantizeLinear")
"""Nodes that a weight may pass through on its way to its convolution."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of the graph, its share of the work, and where it belongs."""

    name: str
    belongs_to: str
    graph: onnx.ModelProto
    macs: int
    """Of one tile: convolutions and matrix products."""

    @property
    def inputs(self) -> list[str]:
        return [value.name for value in self.graph.graph.input]


def read_for_one_tile(path: Path, tile: int) -> onnx.ModelProto:
    """The graph with its batch fixed at one and all shapes inferred."""
    model = onnx.load(path)
    shape = model.graph.input[0].type.tensor_type.shape
    for dimension, size in zip(shape.dim, (1, 1, tile, tile), strict=True):
        dimension.Clear()
        dimension.dim_value = size
    model.graph.output[0].type.tensor_type.shape.dim[0].Clear()
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    del model.graph.value_info[:]
    return shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def cut(model: onnx.ModelProto) -> list[Part]:
    """Head and blocks on both sides of the attention block, its branches, its root, the tail.

    The network's head is computed twice, in the first and in the second half (0.2 % of POAN).
    Raises PoanError where the graph has no attention block with the exporter's stage names.
    """
    made = {name for node in model.graph.node for name in node.output}
    blocks = [name.removesuffix(".attention") for name in made if name.endswith(".attention")]
    if len(blocks) != 1:
        raise PoanError(f"expected one attention block in the graph, found {len(blocks)}")
    (block,) = blocks
    lr, sr = model.graph.input[0].name, model.graph.output[0].name
    features = before_tail(model)
    x, attention, z = f"{block}.x", f"{block}.attention", f"{block}.z"
    levels = sorted(name for name in made if name.startswith(f"{attention}.level"))
    point = [name for name in made if name == f"{attention}.point"]
    wanted = [
        ("head and first blocks", "backbone", [lr], [x]),
        ("point attention", "point attention", [x], point),
        ("patch attention", "patch attention", [x], levels),
        ("covariance and root", "square root", [attention], [z] if z in made else []),
        ("last blocks", "backbone", [lr, x, attention, *([z] if z in made else [])], [features]),
        ("tail", "tail", [lr, features], [sr]),
    ]
    extractor = Extractor(model)
    parts = []
    for name, belongs_to, inputs, outputs in wanted:
        if outputs:
            graph = without_unused_inputs(extractor.extract_model(inputs, outputs))
            parts.append(Part(name=name, belongs_to=belongs_to, graph=graph, macs=macs_of(graph)))
    return parts


def before_tail(model: onnx.ModelProto) -> str:
    """The tensor that the tail's first convolution reads, whose weight may be quantised."""
    weights = {t.name for t in model.graph.initializer if "tail.0.weight" in t.name}
    for node in model.graph.node:
        if node.op_type == "Conv" and node.input[1] in weights:
            return str(node.input[0])
        if node.op_type in CARRIERS and node.input[0] in weights:
            weights.add(node.output[0])
    raise PoanError("expected a convolution with the weight tail.0.weight, found none")


def without_unused_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph without inputs that no node reads."""
    read = {name for node in model.graph.node for name in node.input}
    for value in list(model.graph.input):
        if value.name not in read:
            model.graph.input.remove(value)
    return model


def macs_of(model: onnx.ModelProto) -> int:
    """Multiply-accumulates of the graph's Conv, MatMul and Gemm nodes."""
    known = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    shapes = {
        value.name: [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        for value in known
    }
    shapes |= {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    total = 0
    for node in model.graph.node:
        if node.op_type not in ("Conv", "MatMul", "Gemm"):
            continue
        left, right = shapes[node.input[0]], shapes[node.input[1]]
        # per output element: a convolution's weight is (C_out, C_in / groups, k, k)
        depth = int(np.prod(right[1:])) if node.op_type == "Conv" else left[-1]
        total += int(np.prod(shapes[node.output[0]])) * depth
    return total


def features_at(model: onnx.ModelProto, names: list[str], lr: np.ndarray) -> dict[str, np.ndarray]:
    """Values of inner tensors for one tile ``lr`` (1, 1, t, t), by ONNX Runtime."""
    import onnxruntime

    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    outputs = {value.name for value in tapped.graph.output}
    shapes = {value.name: value for value in model.graph.value_info}
    tapped.graph.output.extend(shapes[name] for name in names if name not in outputs)
    session = onnxruntime.InferenceSession(
        tapped.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    values = session.run(names, {model.graph.input[0].name: lr})
    return dict(zip(names, values, strict=True))
