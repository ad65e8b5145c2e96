"""The network as a user would have it without this project: published attention, plain ONNX."""

import contextlib
import copy
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from poan_export.rewrite.network import RootRule, rewrite
from poan_export.rewrite.root import Scheme
from poan_train.networks.attention import PyramidAttention

SCHEME = Scheme(name="quintic", iterations=7)
OPSET = 20
MOST_TILES = 32


def with_unfold(network: nn.Module) -> nn.Module:
    """A copy whose patch attention is computed as published: unfold, softmax, fold."""
    plain = copy.deepcopy(network).eval()
    for module in plain.modules():
        if isinstance(module, PyramidAttention):
            module.form = "unfold"
    return plain


def export_plain(network: nn.Module, tile: int, path: Path) -> Path:
    """ONNX of the network with unfold attention; eigh, which ONNX lacks, becomes an iteration.

    (N, 1, tile, tile) -> (N, 1, s tile, s tile) with a dynamic batch. Nothing else is rewritten.
    """
    plain = rewrite(with_unfold(network), (RootRule(scheme=SCHEME),))
    batch = torch.export.Dim("batch", min=1, max=MOST_TILES)
    example = (torch.zeros(2, 1, tile, tile),)
    model = onnx_of(plain, example, ["lr"], output_names=["sr"], dynamic_shapes=({0: batch},))
    temporary = path.with_suffix(".partial")
    temporary.write_bytes(model.SerializeToString())
    temporary.rename(path)
    return path


def onnx_of(
    module: nn.Module, example: tuple[torch.Tensor, ...], input_names: list[str], **options: Any
) -> onnx.ModelProto:
    """What PyTorch's own exporter makes of a module, without its notes on the console."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(
                module,
                example,
                dynamo=True,
                opset_version=OPSET,
                input_names=input_names,
                verbose=False,
                **options,
            )
    finally:
        logger.setLevel(level)
    assert exported is not None
    model: onnx.ModelProto = exported.model_proto
    return model
