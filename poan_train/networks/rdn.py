"""RDN: residual dense network (Zhang et al., CVPR 2018, arXiv:1802.08797).

D residual dense blocks of C convolutions with growth rate G; the outputs of all blocks are fused
by a 1x1 and a 3x3 convolution and added to the first features; sub-pixel tail. The paper's
network is D = 16, C = 8, G = G0 = 64. Public implementations count 22.12 M parameters for it
(RGB, x2); one channel in and out takes off 2,306 of them.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from poan_train.networks.blocks import SkippedNetwork, require, upsampler
from poan_train.resample import Grid


@dataclass(frozen=True, kw_only=True)
class RDNConfig:
    """RDN. The defaults are the paper's network."""

    scale: int
    channels: int = 64
    """G0: channels between the blocks."""
    growth: int = 64
    """G: channels that each convolution of a block adds."""
    blocks: int = 16
    """D."""
    layers: int = 8
    """C: convolutions of a block, the 1x1 fusion not counted."""
    # ours
    image_skip: Literal["none", "bicubic"] = "none"
    """Add the bicubic up-sampled input to the output, as POANConfig can."""
    grid: Grid = "centre"
    """Grid of the LR image, for ``image_skip``."""

    def __post_init__(self) -> None:
        sizes = {"channels": self.channels, "growth": self.growth}
        require(self.scale, **sizes, blocks=self.blocks, layers=self.layers)


class ResidualDenseBlock(nn.Module):
    """Each 3x3 convolution sees all features before it; 1x1 local fusion; local skip."""

    def __init__(self, config: RDNConfig) -> None:
        super().__init__()
        c, g = config.channels, config.growth
        self.layers = nn.ModuleList(
            nn.Conv2d(c + i * g, g, 3, padding=1) for i in range(config.layers)
        )
        self.fuse = nn.Conv2d(c + config.layers * g, c, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = [x]
        for layer in self.layers:
            features.append(torch.relu(layer(torch.cat(features, dim=1))))
        return self.fuse(torch.cat(features, dim=1)) + x  # type: ignore[no-any-return]


class RDN(SkippedNetwork):
    """LR (N, 1, h, w) -> SR (N, 1, s h, s w), in the units of the LR."""

    def __init__(self, config: RDNConfig) -> None:
        super().__init__(config.image_skip, config.scale, config.grid)
        self.config = config
        c = config.channels
        self.head = nn.Conv2d(1, c, 3, padding=1)
        self.shallow = nn.Conv2d(c, c, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualDenseBlock(config) for _ in range(config.blocks))
        self.fuse = nn.Sequential(nn.Conv2d(config.blocks * c, c, 1), nn.Conv2d(c, c, 3, padding=1))
        self.tail = upsampler(c, config.scale)

    def from_features(self, x: torch.Tensor) -> torch.Tensor:
        first = self.head(x)
        features = self.shallow(first)
        outputs = []
        for block in self.blocks:
            features = block(features)
            outputs.append(features)
        return self.tail(self.fuse(torch.cat(outputs, dim=1)) + first)  # type: ignore[no-any-return]
