"""Half precision in the graph: the module is converted, with named islands in float32.

The route that serves every TensorRT (all strongly typed now): precision is in the module before
export, so the graph holds the Casts and nothing is left to a builder's flags. Each module casts
its inputs to its own precision, and sums of mixed precision are taken in the wider one. So two
islands in a row hand float32 to each other.
"""

import copy
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import onnx
import torch
from onnx import numpy_helper
from torch import nn

from poan_export.rewrite.attention import (
    PATCH_SCORES,
    Directions,
    PointScores,
    PointShare,
    PointSoftmax,
)
from poan_runtime.errors import PoanError
from poan_train.networks.blocks import BicubicUp
from poan_train.networks.covariance import CovariancePooling

Half = Literal["fp16", "bf16"]
DTYPE: dict[Half, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}
HALF_TYPES = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


class CastInputs:
    """A forward pre-hook: floating-point inputs in the precision of the module."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            x.to(self.dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x
            for x in inputs
        )


def fixed_islands(network: nn.Module) -> tuple[str, ...]:
    """Modules that no half precision fits: covariance and root, the skip of the input, lengths.

    (The squares that a length sums overflow fp16.)
    """
    return _named(network, (CovariancePooling, BicubicUp, Directions))


def default_islands(network: nn.Module, half: Half) -> tuple[str, ...]:
    """The fixed islands, the patch attention's logits and softmax, the point attention's softmax.

    In the dense form queries are not normalised: logits up to 93 were seen, where half precision
    errs by 2-3e-3 after the softmax. The point attention's logits are a product of half precision
    in fp16 all the same, for then TensorRT fuses it and keeps their sums in float32; bf16 would
    round them to one part in 256.
    """
    point = PointSoftmax if half == "fp16" else PointScores
    return _named(network, (CovariancePooling, BicubicUp, Directions, point, *PATCH_SCORES))


def _named(network: nn.Module, kinds: tuple[type[nn.Module], ...]) -> tuple[str, ...]:
    return tuple(name for name, module in network.named_modules() if isinstance(module, kinds))


def in_half(network: nn.Module, half: Half, islands: Iterable[str]) -> nn.Module:
    """A copy of a rewritten network in half precision, with ``islands`` in float32.

    Its input and output stay float32. Raises PoanError for an island that is no module.
    """
    result = copy.deepcopy(network)
    if half == "fp16":
        for module in result.modules():
            if isinstance(module, PointShare):
                module.divide_scores()
    result = result.to(DTYPE[half])
    modules = dict(result.named_modules(remove_duplicate=False))  # shared ones by each name
    whole: set[nn.Module] = set()
    for island in islands:
        if island not in modules:
            raise PoanError(f"island {island!r}: this network has no module of that name")
        whole |= set(modules[island].float().modules())
    for name, module in result.named_modules():
        if name:  # the network itself hands its input to modules alone, and the skip reads float32
            dtype = torch.float32 if module in whole else DTYPE[half]
            module.register_forward_pre_hook(CastInputs(dtype))
    return result


def outermost(islands: Sequence[str]) -> tuple[str, ...]:
    """Islands that lie in no other.

    >>> outermost(["body.8", "body.8.out", "tail"])
    ('body.8', 'tail')
    """
    return tuple(a for a in islands if not any(a.startswith(f"{b}.") for b in islands))


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with every half-precision tensor and Cast as float32, weights as rounded.

    ONNX Runtime's CPU provider runs fp16 graphs in float32 anyway and bf16 graphs not at all.
    Widened openly, the file's wiring and weights can be checked; its arithmetic is checked in
    :mod:`poan_export.precision.half_emulation`.
    """
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    for tensor in wide.graph.initializer:
        _widen(tensor)
    for node in wide.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _widen(attribute.t)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in HALF_TYPES:
                attribute.i = onnx.TensorProto.FLOAT
    del wide.graph.value_info[:]
    return wide


def _widen(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in HALF_TYPES:
        values = numpy_helper.to_array(tensor).astype("float32")
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
