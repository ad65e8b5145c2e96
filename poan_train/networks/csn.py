"""CSN: channel splitting network for MR images (Zhao et al., TIP 2019, arXiv:1810.06453).

Stated in its abstract: features are divided along channels into a residual branch, which reuses
features, and a dense branch, which explores new ones, and merge-and-run mappings carry information
between the two. Merge-and-run is that of arXiv:1611.07718: the mean of the branches' inputs is
added to each branch's output. All else, the sizes included, is our reading and marked [open];
we know of no stated parameter count to check against.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from poan_train.networks.blocks import SkippedNetwork, require, upsampler
from poan_train.resample import Grid


@dataclass(frozen=True, kw_only=True)
class CSNConfig:
    """CSN. A field marked [open] is our reading of what the abstract leaves unsaid."""

    scale: int
    channels: int = 128
    """[open] Before the split; each branch has half."""
    blocks: int = 16
    """[open] Channel splitting blocks."""
    units: int = 2
    """[open] Merge-and-run units of a block."""
    growth: int = 32
    """[open] Channels that each convolution of the dense branch adds."""
    layers: int = 4
    """[open] 3x3 convolutions of the dense branch in a unit; a 1x1 brings it back to its width."""
    # ours
    image_skip: Literal["none", "bicubic"] = "none"
    """Add the bicubic up-sampled input to the output, as POANConfig can."""
    grid: Grid = "centre"
    """Grid of the LR image, for ``image_skip``."""

    def __post_init__(self) -> None:
        sizes = {"blocks": self.blocks, "units": self.units, "growth": self.growth}
        require(self.scale, channels=self.channels, **sizes, layers=self.layers)
        if self.channels % 2:
            raise ValueError(f"channels must be even, to be split in two, got {self.channels}")


class DenseBranch(nn.Module):
    """3x3 convolutions that each see all before them, then 1x1 back to the width: (N, C, h, w)."""

    def __init__(self, width: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(width + i * growth, growth, 3, padding=1) for i in range(layers)
        )
        self.fuse = nn.Conv2d(width + layers * growth, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = [x]
        for layer in self.layers:
            features.append(torch.relu(layer(torch.cat(features, dim=1))))
        return self.fuse(torch.cat(features, dim=1))  # type: ignore[no-any-return]


class MergeAndRun(nn.Module):
    """Both branches once: the mean of their inputs is added to the output of each."""

    def __init__(self, width: int, growth: int, layers: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.dense = DenseBranch(width, growth, layers)

    def forward(
        self, residual: torch.Tensor, dense: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        mean = 0.5 * (residual + dense)
        return self.residual(residual) + mean, self.dense(dense) + mean


class ChannelSplittingBlock(nn.Module):
    """Split, merge-and-run units, concatenate, 1x1 fusion [open], local skip: (N, C, h, w)."""

    def __init__(self, config: CSNConfig) -> None:
        super().__init__()
        half = config.channels // 2
        self.units = nn.ModuleList(
            MergeAndRun(half, config.growth, config.layers) for _ in range(config.units)
        )
        self.fuse = nn.Conv2d(config.channels, config.channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual, dense = torch.chunk(x, 2, dim=1)  # (N, C / 2, h, w) each
        for unit in self.units:
            residual, dense = unit(residual, dense)
        return self.fuse(torch.cat([residual, dense], dim=1)) + x  # type: ignore[no-any-return]


class CSN(SkippedNetwork):
    """LR (N, 1, h, w) -> SR (N, 1, s h, s w), in the units of the LR."""

    def __init__(self, config: CSNConfig) -> None:
        super().__init__(config.image_skip, config.scale, config.grid)
        self.config = config
        c = config.channels
        self.head = nn.Conv2d(1, c, 3, padding=1)
        blocks = [ChannelSplittingBlock(config) for _ in range(config.blocks)]
        self.body = nn.Sequential(*blocks, nn.Conv2d(c, c, 3, padding=1))
        self.tail = upsampler(c, config.scale)

    def from_features(self, x: torch.Tensor) -> torch.Tensor:
        features = self.head(x)
        return self.tail(self.body(features) + features)  # type: ignore[no-any-return]
