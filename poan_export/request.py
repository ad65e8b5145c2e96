"""What ``poan-export`` was asked for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from poan_export.plans.make import NO_ENGINE, EngineRequest
from poan_export.precision.islands import Half
from poan_export.rewrite.attention import Form
from poan_export.rewrite.root import RootName
from poan_export.trace.onnx_export import LEAST_OPSET
from poan_runtime.errors import PoanError

BF16_OPSET = 22


@dataclass(frozen=True, kw_only=True)
class Request:
    """What ``poan-export`` was asked for. Lengths are LR voxels."""

    ckpt: Path
    out: Path | None = None
    half: Half | None = None
    tile: int | None = None
    other_tiles: tuple[int, ...] = ()
    """Further tiles, whose plans poan-run takes for the matrices where they move fewer bytes."""
    halo: int | None = None
    overlap: int | None = None
    """None: the architecture's own, as for ``tile``."""
    opset: int | None = None
    """20, and 22 for bf16, which Conv has from there on."""
    root: RootName | None = None
    iterations: int | None = None
    attention: Form | Literal["auto"] = "box"
    parity_data: Path | None = None
    islands: tuple[str, ...] | None = None
    """Modules that stay in float32 beside the fixed ones; None for the default."""
    find_islands: bool = False
    engine: EngineRequest = NO_ENGINE
    allow_worse: bool = False
    """Export a network that loses to interpolation all the same."""
    vram: int | None = None
    """Bytes of device memory that an engine may take; chooses tile and batch."""


def opset_of(request: Request) -> int:
    """The opset asked for, or the least that holds the precision."""
    least = BF16_OPSET if request.half == "bf16" else LEAST_OPSET
    if request.opset is not None and request.opset < least:
        raise PoanError(f"--opset {request.opset}: {request.half or 'export'} needs {least}")
    return request.opset or least
