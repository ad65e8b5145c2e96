"""VDSR: very deep network on the bicubic image (Kim et al., CVPR 2016, arXiv:1511.04587).

Twenty 3x3 convolutions of 64 channels on the up-sampled image, which learn what bicubic misses.
The paper states the layers, not the count; with its sizes there are 664,704 weights (the 665 k
that later papers quote) and 1,217 biases. It is a luminance network, so one channel is its own.
"""

import itertools
from dataclasses import dataclass

import torch
from torch import nn

from poan_train.networks.blocks import BicubicUp, require
from poan_train.resample import Grid


@dataclass(frozen=True, kw_only=True)
class VDSRConfig:
    """VDSR. The defaults are the paper's network."""

    scale: int
    channels: int = 64
    layers: int = 20
    """Convolutions, first and last included."""
    grid: Grid = "centre"
    """Grid of the LR image, for the bicubic input."""

    def __post_init__(self) -> None:
        require(self.scale, channels=self.channels)
        if self.layers < 2:
            raise ValueError(f"layers must be at least 2, got {self.layers}")


class VDSR(nn.Module):
    """LR (N, 1, h, w) -> SR (N, 1, s h, s w), in the units of the LR."""

    def __init__(self, config: VDSRConfig) -> None:
        super().__init__()
        self.config = config
        c = config.channels
        self.up = BicubicUp(config.scale, config.grid)
        widths = [1, *[c] * (config.layers - 1)]
        hidden: list[nn.Module] = []
        for n_in, n_out in itertools.pairwise(widths):
            hidden += [nn.Conv2d(n_in, n_out, 3, padding=1), nn.ReLU()]
        self.body = nn.Sequential(*hidden, nn.Conv2d(c, 1, 3, padding=1))
        for layer in self.body:
            if isinstance(layer, nn.Conv2d):  # arXiv:1502.01852, as the paper has it
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up = self.up(x)
        return up + self.body(up)  # type: ignore[no-any-return]
