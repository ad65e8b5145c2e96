"""Bicubic up-sampling as a layer: the input of SRCNN and VDSR, and the image skip of the others."""

import torch
from torch import nn

from poan_train.networks.config import SCALES
from poan_train.resample import Grid, cubic_matrix, resize


class BicubicUp(nn.Module):
    """Cubic interpolation (a = -0.5) by constant matrices: (N, C, h, w) -> (N, C, s h, s w).

    Two matrix products, so an exported network carries the up-sampling and no target's ``Resize``
    has a say in it. ``grid`` is where the LR samples lie, see :mod:`poan_train.degrade`.
    """

    def __init__(self, scale: int, grid: Grid) -> None:
        super().__init__()
        self.scale, self.grid = scale, grid

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, w = x.shape[-2:]
        rows = cubic_matrix(h, self.scale * h, grid=self.grid)
        return resize(x, rows, cubic_matrix(w, self.scale * w, grid=self.grid))


def image_skip(kind: str, scale: int, grid: Grid) -> BicubicUp | None:
    """The layer that a config's ``image_skip`` ("none" or "bicubic") names."""
    return BicubicUp(scale, grid) if kind == "bicubic" else None


def require(scale: int, **positive: int) -> None:
    """Raise ValueError unless ``scale`` is one of ours and every other number is at least 1."""
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {SCALES}, got {scale}")
    for name, value in positive.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
