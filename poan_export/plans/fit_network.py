"""``--vram``: the largest tile and batch of a network that fit, from plans built for each."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from torch import nn

from poan_export.plans.vram import Fit, fit
from poan_export.trace.onnx_export import export_twin, without_stages
from poan_runtime.engines.tensorrt.build.plan import Order, build_plan, targets
from poan_runtime.engines.tensorrt.library import Flavour
from poan_runtime.errors import Say
from poan_runtime.models.manifest import BatchRange, Precision

TILES = (24, 32, 48, 64, 80, 96, 128)


def fit_network(
    network: nn.Module,
    *,
    scale: int,
    vram: int,
    precision: Precision,
    flavour: Flavour,
    sm: str | None,
    opset: int,
    tile: int | None,
    say: Say,
) -> Fit:
    """The choice for a rewritten network in the precision that it is to run in.

    ``tile`` alone is tried where one was asked for, else `TILES`.
    """
    sms = targets(precision, sm)[0] if flavour == "tensorrt-rtx" else ()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)

        def build(side: int, batch: BatchRange) -> Mapping[str, Any]:
            path = folder / f"{side}.onnx"
            if not path.is_file():
                onnx.save(without_stages(export_twin(network, side, opset)), path)
            order = Order(
                onnx=path,
                plan=folder / "engine.plan",
                flavour=flavour,
                precision=precision,
                islands=(),
                batch=batch,
                sms=sms,
            )
            found = build_plan(order).report
            say(f"--vram: tile {side}, batch {batch.max}: {found['activation_bytes']} bytes")
            return found

        return fit(vram, [tile] if tile else TILES, scale, build)
