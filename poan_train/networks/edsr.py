"""EDSR: enhanced deep residual network (Lim et al., CVPR workshops 2017, arXiv:1707.02921).

Residual blocks without normalisation, a global skip over features, a sub-pixel tail. The paper
names two sizes: EDSR, 32 blocks of 256 channels whose residuals are scaled by 0.1 (43 M
parameters), and the single-scale baseline, 16 blocks of 64 channels (1.5 M). Both counts are for
RGB at x4; one channel in and out takes off 4C weights of 3x3 in head and tail, and 2 biases.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from poan_train.networks.blocks import ResidualBlock, SkippedNetwork, require, upsampler
from poan_train.resample import Grid


@dataclass(frozen=True, kw_only=True)
class EDSRConfig:
    """EDSR. The defaults are the paper's larger network."""

    scale: int
    channels: int = 256
    blocks: int = 32
    residual_scale: float = 0.1
    # ours
    image_skip: Literal["none", "bicubic"] = "none"
    """Add the bicubic up-sampled input to the output, as POANConfig can."""
    grid: Grid = "centre"
    """Grid of the LR image, for ``image_skip``."""

    def __post_init__(self) -> None:
        require(self.scale, channels=self.channels, blocks=self.blocks)


class EDSR(SkippedNetwork):
    """LR (N, 1, h, w) -> SR (N, 1, s h, s w), in the units of the LR."""

    def __init__(self, config: EDSRConfig) -> None:
        super().__init__(config.image_skip, config.scale, config.grid)
        self.config = config
        c = config.channels
        self.head = nn.Conv2d(1, c, 3, padding=1)
        blocks = [ResidualBlock(c, config.residual_scale) for _ in range(config.blocks)]
        self.body = nn.Sequential(*blocks, nn.Conv2d(c, c, 3, padding=1))
        self.tail = upsampler(c, config.scale)

    def from_features(self, x: torch.Tensor) -> torch.Tensor:
        features = self.head(x)
        return self.tail(self.body(features) + features)  # type: ignore[no-any-return]
