"""A graph cut into pieces of their own precision, run one after the other without copies.

OpenVINO's precision is a property of a compiled model. Its mark for single nodes is lost where it
fuses or rewrites them, and a matrix root of which one product runs in bf16 is 2 % off. So the
covariance and its root, from the features to z, are a model of their own in float32.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poan_runtime.engines.openvino.library import core, openvino
from poan_runtime.errors import PoanError

Tiles = NDArray[np.float32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of the graph: models of ``inputs`` to ``outputs``, tensors by name."""

    graph: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    float32: bool


def pieces_of(graph: Any, float32_parts: Sequence[tuple[str, str]]) -> list[Piece]:
    """The graph, which has fixed shapes, cut before and after each part (from tensor, to tensor).

    The parts come in order of computation. Raises PoanError where a tensor is not there.
    """
    _fix_shapes(graph)
    source, target = graph.input().any_name, graph.output().any_name
    known = [source]
    pieces: list[Piece] = []
    for start, end in float32_parts:
        crossing = _crossing(graph, known, start)
        pieces.append(_piece(graph, known, crossing, float32=False))
        pieces.append(_piece(graph, [start], [end], float32=True))
        known = [*dict.fromkeys([*crossing, *known, end])]
    pieces.append(_piece(graph, known, [target], float32=False))
    return pieces


def _fix_shapes(graph: Any) -> None:
    """Put a constant where a shape is asked for, so that no cut goes through a shape.

    OpenVINO's own folding of constants would also undo the storage of weights in eight bits,
    and with it the convolutions in eight bits.
    """
    for node in graph.get_ordered_ops():
        if node.get_type_name() == "ShapeOf":
            shape = np.array(node.input_value(0).get_shape(), np.int64)
            node.output(0).replace(openvino.opset13.constant(shape).output(0))


def _crossing(graph: Any, known: Sequence[str], last: str) -> list[str]:
    """Tensors that what is computed up to ``last`` hands on: ``last`` first, then the others."""
    end, *starts = _ports(graph, [last, *known])
    before = _ancestors(end, {_key(port) for port in starts})
    varying = _varying(graph)
    names = [last]
    for node in before:
        for port in node.outputs():
            after = [user.get_node() for user in port.get_target_inputs()]
            used = any(user not in before for user in after)
            if used and node.get_name() in varying:
                names.append(_name(port))
    return list(dict.fromkeys(names))


def _varying(graph: Any) -> set[str]:
    """Names of the nodes whose value depends on the graph's input."""
    names: set[str] = set()
    for node in graph.get_ordered_ops():
        sources = (node.input_value(index).get_node() for index in range(node.get_input_size()))
        if any(one.get_name() in names or one.get_type_name() == "Parameter" for one in sources):
            names.add(node.get_name())
    return names


def _ancestors(port: Any, stops: set[tuple[str, int]]) -> list[Any]:
    """Nodes that a tensor is computed by, without going beyond the tensors ``stops``."""
    found: dict[str, Any] = {}
    ahead = [port]
    while ahead:
        one = ahead.pop()
        node = one.get_node()
        if _key(one) in stops or node.get_name() in found:
            continue
        found[node.get_name()] = node
        ahead.extend(node.input_value(index) for index in range(node.get_input_size()))
    return list(found.values())


def _piece(graph: Any, inputs: Sequence[str], outputs: Sequence[str], *, float32: bool) -> Piece:
    """A copy of the part of the graph that leads from ``inputs`` to ``outputs``."""
    copy = graph.clone()
    ports = _ports(copy, [*outputs, *inputs])
    results = ports[: len(outputs)]
    parameters = []
    for name, port in zip(inputs, ports[len(outputs) :], strict=True):
        if port.get_node().get_type_name() == "Parameter":
            parameters.append(port.get_node())
            continue
        parameter = openvino.opset13.parameter(port.get_shape(), port.get_element_type())
        if name in outputs:
            raise PoanError(f"{name}: expected a tensor that the piece computes")
        port.replace(parameter.output(0))
        parameters.append(parameter)
    return Piece(
        graph=openvino.Model(results, parameters),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        float32=float32,
    )


def _ports(graph: Any, names: Sequence[str]) -> list[Any]:
    """The tensors of these names. Raises PoanError where one is not there."""
    found: dict[str, Any] = {}
    for node in graph.get_ordered_ops():
        for port in node.outputs():
            for name in (*port.get_names(), _name(port)):
                found.setdefault(name, port)
    for name in names:
        if name not in found:
            raise PoanError(f"the graph has no tensor {name}; export it again")
    return [found[name] for name in names]


def _name(port: Any) -> str:
    """A name of a tensor, of those that have one."""
    names = sorted(port.get_names())
    return names[0] if names else f"{port.get_node().get_friendly_name()}:{port.get_index()}"


def _key(port: Any) -> tuple[str, int]:
    return port.get_node().get_name(), port.get_index()


class Chain:
    """Compiled pieces and one infer request for each; what one writes the next reads in place."""

    def __init__(self, compiled: Sequence[Any], pieces: Sequence[Piece]) -> None:
        self._requests = [model.create_infer_request() for model in compiled]
        self._tensors: dict[str, Any] = {}
        for request, piece in zip(self._requests, pieces, strict=True):
            for index, name in enumerate(piece.inputs):
                if name in self._tensors:
                    request.set_input_tensor(index, self._tensors[name])
                else:
                    self._tensors[name] = request.get_input_tensor(index)
            for index, name in enumerate(piece.outputs):
                self._tensors[name] = request.get_output_tensor(index)
        self._source = self._tensors[pieces[0].inputs[0]]
        self._target = self._tensors[pieces[-1].outputs[0]]
        # The first look at a tensor's data in a process sets up a static of OpenVINO's bindings;
        # two threads that do so at once wait for each other for ever (seen in 2026.4.1).
        _ = self._source.data, self._target.data

    def __call__(self, tile: Tiles) -> Tiles:
        """Answer one tile (1, 1, h, w)."""
        self._source.data[:] = tile
        for request in self._requests:
            request.infer()
        return np.array(self._target.data, np.float32)

    def tensor(self, name: str) -> NDArray[Any]:
        """A copy of a tensor at a cut, as of the last tile."""
        return np.array(self._tensors[name].data)


def settings(hint: str, threads: int) -> dict[str, Any]:
    """How OpenVINO compiles for ``threads`` tiles at once, each on one thread.

    The precision hint is always set: left alone, OpenVINO takes bf16 on CPUs that have it, which
    would be outside of any parity verdict. Streams are not pinned to cores: each compiled piece
    would have its own stream pinned to each core, and pieces of two tiles would meet on one.
    """
    return {
        "INFERENCE_PRECISION_HINT": hint,
        "NUM_STREAMS": threads,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,
    }


def compile_chains(
    graph: Any,
    *,
    tile: int,
    precision: str,
    float32_parts: Sequence[tuple[str, str]],
    threads: int,
) -> list[Callable[[Tiles], Tiles]]:
    """One chain per thread for a graph (N, 1, tile, tile), which takes one tile at a time.

    Elementwise operations are fused only where shapes are known, hence the fixed batch.
    """
    graph.reshape([1, 1, tile, tile])
    parts = () if precision == "fp32" else float32_parts
    pieces = pieces_of(graph, parts)
    compiled = []
    for piece in pieces:
        hint = "f32" if piece.float32 or precision == "fp32" else precision
        compiled.append(core().compile_model(piece.graph, "CPU", settings(hint, threads)))
    return [Chain(compiled, pieces) for _ in range(threads)]
