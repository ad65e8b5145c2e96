"""What several networks are made of."""

import torch
from torch import nn

from poan_train.networks.config import SCALES
from poan_train.resample import Grid, cubic_matrix, resize


class ResidualBlock(nn.Module):
    """conv-ReLU-conv with a skip, no normalisation (EDSR, arXiv:1707.02921)."""

    def __init__(self, channels: int, scale: float = 1.0) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        return x + (y if self.scale == 1.0 else self.scale * y)  # type: ignore[no-any-return]


def upsampler(channels: int, scale: int) -> nn.Sequential:
    """Sub-pixel tail to one channel: 2 and 3 in one step, 4 as 2 twice."""
    steps = {2: (2,), 3: (3,), 4: (2, 2)}[scale]
    layers: list[nn.Module] = []
    for step in steps:
        layers += [nn.Conv2d(channels, channels * step**2, 3, padding=1), nn.PixelShuffle(step)]
    return nn.Sequential(*layers, nn.Conv2d(channels, 1, 3, padding=1))


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


class SkippedNetwork(nn.Module):
    """A network that may add the bicubic image to what its features yield.

    LR (N, 1, h, w) -> SR (N, 1, s h, s w), in the units of the LR. ``skip`` is a module, so that
    half precision can leave the image in float32 (:mod:`poan_export.precision`).
    """

    def __init__(self, image_skip: str, scale: int, grid: Grid) -> None:
        super().__init__()
        self.skip = BicubicUp(scale, grid) if image_skip == "bicubic" else None

    def from_features(self, x: torch.Tensor) -> torch.Tensor:
        """The output less the bicubic image, where that is added."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.from_features(x)
        return y if self.skip is None else y + self.skip(x)


def require(scale: int, **positive: int) -> None:
    """Raise ValueError unless ``scale`` is one of ours and every other number is at least 1."""
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {SCALES}, got {scale}")
    for name, value in positive.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
