"""INT8 and FP8: explicit Q/DQ around the convolutions of the residual blocks, and of them alone.

Head, tail and attention stay as they are. Weights have one scale per output channel, activations
one per tensor, calibrated on real tiles. What it costs is measured in PSNR against the truth, by
ONNX Runtime on a CPU, and a graph that loses too much is refused with the number. The
quantisation is symmetric, which TensorRT demands.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from poan_export.gate.real_tiles import Case
from poan_runtime.errors import PoanError
from poan_train.metrics import psnr

Kind = Literal["int8", "fp8"]
LARGEST = {"int8": 127.0, "fp8": 448.0}
ONNX_TYPES = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}
MOST_LOSS_DB = 0.05
BINS = 2048
CLIPS = np.linspace(0.2, 1.0, 81)
"""Shares of the largest magnitude that are tried as the clipping point of int8."""
ERRORS_ONLY = 3


class QuantisationRefusedError(PoanError):
    """The quantised graph loses too much; says how much."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """Change of PSNR against the truth, fp32 minus quantised, over held-out real tiles, in dB."""

    mean_db: float
    worst_db: float
    tiles: int


def residual_convolutions(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Both convolutions of each conv-ReLU-conv-add block whose add closes a skip, in order."""
    made_by = {output: node for node in graph.node for output in node.output}
    found = []
    for add in graph.node:
        if add.op_type != "Add":
            continue
        for branch, skip in (tuple(add.input), tuple(reversed(add.input))):
            last = made_by.get(branch)
            if last is not None and last.op_type == "Mul":  # the residual scale
                last = next((made_by[i] for i in last.input if i in made_by), None)
            relu = made_by.get(last.input[0]) if last and last.op_type == "Conv" else None
            first = made_by.get(relu.input[0]) if relu and relu.op_type == "Relu" else None
            if last and first and first.op_type == "Conv" and first.input[0] == skip:
                found += [first, last]
                break
    return found


def calibrate(model: onnx.ModelProto, tiles: NDArray[np.float32], kind: Kind) -> dict[str, float]:
    """Scale of the input of each residual convolution, by the name of the tensor.

    Every tile is used, in two passes: the largest magnitudes, then histograms. For int8 the
    clipping point is the one of least expected square error; fp8 rounds relatively, so that
    clipping gains nothing.
    """
    names = list(dict.fromkeys(conv.input[0] for conv in residual_convolutions(model.graph)))
    if not names:
        raise PoanError(f"--{kind}: this network has no residual blocks to quantise")
    largest = dict.fromkeys(names, 0.0)
    for values in _activations(model, names, tiles):
        for name, value in values.items():
            largest[name] = max(largest[name], float(np.abs(value).max()))
    if kind == "fp8":
        return {name: _scale(top, kind) for name, top in largest.items()}
    counts = {name: np.zeros(BINS) for name in names}
    for values in _activations(model, names, tiles):
        for name, value in values.items():
            top = largest[name] or 1.0
            counts[name] += np.histogram(np.abs(value), BINS, (0, top))[0]
    return {name: _scale(largest[name] * _best_clip(counts[name]), kind) for name in names}


def _scale(top: float, kind: Kind) -> float:
    return (top or 1.0) / LARGEST[kind]


def _best_clip(counts: NDArray[np.float64]) -> float:
    """Where to clip int8, as a share of the range.

    The clipping point has the least sum of rounding error inside and clipping error outside.
    """
    centres = (np.arange(BINS) + 0.5) / BINS
    errors = []
    for clip in CLIPS:
        inside = centres <= clip
        rounding = counts[inside].sum() * (clip / LARGEST["int8"]) ** 2 / 12
        errors.append(rounding + (counts * np.maximum(centres - clip, 0) ** 2).sum())
    return float(CLIPS[int(np.argmin(errors))])


def _activations(
    model: onnx.ModelProto, names: Sequence[str], tiles: NDArray[np.float32]
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Run each tile in turn; values of the inner tensors ``names``."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = _session(watched)
    for tile in tiles:
        outputs = session.run(list(names), {model.graph.input[0].name: tile[None]})
        yield dict(zip(names, outputs, strict=True))


def quantise(model: onnx.ModelProto, scales: Sequence[float], kind: Kind) -> onnx.ModelProto:
    """A copy with Q/DQ at the input and DQ at the weights of each residual convolution.

    ``scales`` in the order of `residual_convolutions`, so that those found with the fp32 graph
    serve its fp16 twin: an fp16 graph gets fp16 scales, as strong typing demands.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    convolutions = residual_convolutions(graph)
    if len(convolutions) != len(scales):
        raise ValueError(f"need a scale for each of {len(convolutions)}, got {len(scales)}")
    added: dict[str, list[onnx.NodeProto]] = {}
    for conv, scale in zip(convolutions, scales, strict=True):
        data, kernel = conv.input[0], conv.input[1]
        weight = numpy_helper.to_array(weights[kernel])
        nodes = _quantised_input(graph, data, scale, weight.dtype, kind, conv.name)
        nodes.append(_quantised_weight(graph, kernel, weight, kind))
        conv.input[0], conv.input[1] = nodes[-2].output[0], nodes[-1].output[0]
        added[conv.name] = nodes
        graph.initializer.remove(weights[kernel])
    ordered = [part for node in graph.node for part in (*added.get(node.name, ()), node)]
    del graph.node[:]
    graph.node.extend(ordered)
    del graph.value_info[:]
    onnx.checker.check_model(result)
    return result


def _quantised_input(
    graph: onnx.GraphProto, data: str, scale: float, dtype: Any, kind: Kind, name: str
) -> list[onnx.NodeProto]:
    """Q and DQ of one tensor."""
    constants = (f"{name}.scale", f"{name}.zero")
    graph.initializer.append(numpy_helper.from_array(np.asarray(scale, dtype), constants[0]))
    graph.initializer.append(helper.make_tensor(constants[1], ONNX_TYPES[kind], [], [0]))
    inner, outer = f"{name}.quantised", f"{name}.dequantised"
    return [
        helper.make_node("QuantizeLinear", [data, *constants], [inner], name=f"{name}.q"),
        helper.make_node("DequantizeLinear", [inner, *constants], [outer], name=f"{name}.dq"),
    ]


def _quantised_weight(
    graph: onnx.GraphProto, name: str, weight: NDArray[Any], kind: Kind
) -> onnx.NodeProto:
    """DQ of weights (C_out, C_in, k, k) that are stored in eight bits, one scale per C_out."""
    wide = weight.astype(np.float64)
    top = np.abs(wide).max(axis=(1, 2, 3))
    scale = (np.where(top > 0, top, 1.0) / LARGEST[kind]).astype(weight.dtype)
    scaled = wide / scale.astype(np.float64)[:, None, None, None]
    if kind == "int8":
        stored = np.clip(np.rint(scaled), -127, 127).astype(np.int8)
    else:
        stored = np.clip(scaled, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    eight = helper.make_tensor(
        f"{name}.{kind}", ONNX_TYPES[kind], weight.shape, stored.tobytes(), raw=True
    )
    zeros = helper.make_tensor(
        f"{name}.zero", ONNX_TYPES[kind], [len(scale)], bytes(len(scale)), raw=True
    )
    graph.initializer.extend((eight, numpy_helper.from_array(scale, f"{name}.scale"), zeros))
    inputs = [eight.name, f"{name}.scale", zeros.name]
    return helper.make_node(
        "DequantizeLinear", inputs, [f"{name}.dequantised"], name=f"{name}.dq", axis=0
    )


def psnr_loss(model: onnx.ModelProto, quantised: onnx.ModelProto, cases: Sequence[Case]) -> Loss:
    """How much PSNR against the truth a quantised graph loses on real tiles."""
    both = [_session(model), _session(quantised)]
    name = model.graph.input[0].name
    losses = []
    for case in cases:
        if case.hr is None:
            raise ValueError(f"need the truth of every tile, {case.name} has none")
        full, eight = (session.run(None, {name: case.lr[None]})[0][0] for session in both)
        losses.append(psnr(case.hr, full) - psnr(case.hr, eight))
    return Loss(mean_db=float(np.mean(losses)), worst_db=float(max(losses)), tiles=len(losses))


def quantise_or_refuse(
    models: Mapping[str, onnx.ModelProto], cases: Sequence[Case], kind: Kind
) -> tuple[dict[str, onnx.ModelProto], Loss]:
    """Quantised twins of ``models`` (``fp32`` and others of the same network) and their loss.

    Every second real tile calibrates, the others measure. Raises QuantisationRefusedError where
    the mean loss is `MOST_LOSS_DB` or more.
    """
    if len(cases) < 2:
        raise PoanError(f"--{kind}: expected at least 2 real tiles to calibrate, got {len(cases)}")
    full = models["fp32"]
    by_tensor = calibrate(full, np.stack([case.lr for case in cases[::2]]), kind)
    scales = [by_tensor[conv.input[0]] for conv in residual_convolutions(full.graph)]
    loss = psnr_loss(full, quantise(full, scales, kind), cases[1::2])
    if not loss.mean_db < MOST_LOSS_DB:
        raise QuantisationRefusedError(
            f"--{kind}: refused: it loses {loss.mean_db:.3f} dB of PSNR against fp32 "
            f"(worst tile {loss.worst_db:.3f} dB, {loss.tiles} tiles); "
            f"the most is {MOST_LOSS_DB} dB"
        )
    return {name: quantise(model, scales, kind) for name, model in models.items()}, loss


def _session(model: onnx.ModelProto) -> Any:
    """A CPU session. Its extended optimisations are off: on fp8 they drop a ReLU before a Q."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
