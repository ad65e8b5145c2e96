"""SRCNN: three convolutions on the bicubic image (Dong et al., TPAMI 2016, arXiv:1501.00092).

The default is 9-5-5 with 64 and 32 channels, the best network of the paper's Sec. 4.3, where its
57,184 weights are stated (9-3-5: 24,416; 9-1-5: 8,032), biases not counted. Ours differs in one
point: borders are padded with zeros, where the paper's training crops them.
"""

from dataclasses import dataclass

import torch
from torch import nn

from poan_train.networks.blocks import BicubicUp, require
from poan_train.resample import Grid


@dataclass(frozen=True, kw_only=True)
class SRCNNConfig:
    """SRCNN. The defaults are the paper's 9-5-5."""

    scale: int
    kernels: tuple[int, int, int] = (9, 5, 5)
    channels: tuple[int, int] = (64, 32)
    grid: Grid = "centre"
    """Grid of the LR image, for the bicubic input."""

    def __post_init__(self) -> None:
        require(self.scale)
        if any(k < 1 or k % 2 == 0 for k in self.kernels):
            raise ValueError(f"kernels must be odd, got {self.kernels}")


class SRCNN(nn.Module):
    """LR (N, 1, h, w) -> SR (N, 1, s h, s w), in the units of the LR."""

    def __init__(self, config: SRCNNConfig) -> None:
        super().__init__()
        self.config = config
        (k1, k2, k3), (n1, n2) = config.kernels, config.channels
        self.up = BicubicUp(config.scale, config.grid)
        self.body = nn.Sequential(
            nn.Conv2d(1, n1, k1, padding=k1 // 2),
            nn.ReLU(),
            nn.Conv2d(n1, n2, k2, padding=k2 // 2),
            nn.ReLU(),
            nn.Conv2d(n2, 1, k3, padding=k3 // 2),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(self.up(x))  # type: ignore[no-any-return]
