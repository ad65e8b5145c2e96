"""SERAN (from the abstract): squeeze and excitation reasoning attention (Zhang et al., CVPR 2021).

Only the abstract is public to us. It says: global descriptors are squeezed from the whole space;
relations among them, as primitive relationship reasoning attention, refine them; each location
selects a subset of the descriptors through adaptive attention vectors; residual scaling
stabilises training and lets the block go into other networks. The formulas, the widths, the
number of descriptors and of blocks are our reading [open], so results under this name are not the
paper's. With X (HW, C):

    D  = softmax_HW(W_a X)^T (W_v X)                       (K, C): K descriptors
    D' = D + softmax_K(theta(D) phi(D)^T) D W_r            reasoning
    Y  = X + lambda W_o(softmax_K(W_e X) D')               each location selects
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from poan_train.networks.attention import at_least_float32
from poan_train.networks.blocks import ResidualBlock, SkippedNetwork, require, upsampler
from poan_train.resample import Grid


@dataclass(frozen=True, kw_only=True)
class SERANConfig:
    """SERAN (from the abstract). Everything here is our choice [open]."""

    scale: int
    channels: int = 64
    blocks: int = 40
    """Residual blocks, the attention not counted: POAN's backbone."""
    attention_every: int = 10
    """An attention block follows each so many residual blocks."""
    descriptors: int = 32
    """K."""
    relation: int = 32
    """Width of theta and phi."""
    attention_scale: float = 0.1
    """lambda: the residual scaling."""
    # ours
    zero_start: bool = False
    """W_o starts at zero, so that each attention block starts as the identity."""
    image_skip: Literal["none", "bicubic"] = "none"
    """Add the bicubic up-sampled input to the output, as POANConfig can."""
    grid: Grid = "centre"
    """Grid of the LR image, for ``image_skip``."""

    def __post_init__(self) -> None:
        sizes = {"descriptors": self.descriptors, "relation": self.relation}
        require(self.scale, channels=self.channels, blocks=self.blocks, **sizes)
        if not 1 <= self.attention_every <= self.blocks:
            raise ValueError(
                f"need 1 <= attention_every <= blocks, got {self.attention_every}, {self.blocks}"
            )


class ReasoningAttention(nn.Module):
    """Squeeze, reason, excite: (N, C, h, w) -> (N, C, h, w), global over the tile.

    All three softmaxes and the products between them are taken in at least float32.
    """

    def __init__(self, config: SERANConfig) -> None:
        super().__init__()
        c, k, r = config.channels, config.descriptors, config.relation
        self.squeeze = nn.Conv2d(c, k, 1)
        self.value = nn.Conv2d(c, c, 1)
        self.theta = nn.Linear(c, r)
        self.phi = nn.Linear(c, r)
        self.reason = nn.Linear(c, c, bias=False)
        self.select = nn.Conv2d(c, k, 1)
        self.out = nn.Conv2d(c, c, 1)
        self.scale = config.attention_scale
        if config.zero_start:
            for parameter in self.out.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        squeeze = self.squeeze(x).flatten(2)  # (N, K, hw)
        value = self.value(x).flatten(2).transpose(1, 2)  # (N, hw, C)
        select = self.select(x).flatten(2).transpose(1, 2)  # (N, hw, K)
        with torch.autocast(x.device.type, enabled=False):
            where = torch.softmax(at_least_float32(squeeze), dim=2)
            found = where @ at_least_float32(value)  # (N, K, C)
        theta, phi = self.theta(found.to(x.dtype)), self.phi(found.to(x.dtype))  # (N, K, r)
        moved = self.reason(found.to(x.dtype))  # (N, K, C)
        with torch.autocast(x.device.type, enabled=False):
            scores = at_least_float32(theta) @ at_least_float32(phi).transpose(1, 2)
            refined = found + torch.softmax(scores, dim=2) @ at_least_float32(moved)
            y = torch.softmax(at_least_float32(select), dim=2) @ refined  # (N, hw, C)
        y = y.transpose(1, 2).reshape(n, c, h, w).to(x.dtype)
        return x + self.scale * self.out(y)  # type: ignore[no-any-return]


class SERAN(SkippedNetwork):
    """LR (N, 1, h, w) -> SR (N, 1, s h, s w), in the units of the LR."""

    def __init__(self, config: SERANConfig) -> None:
        super().__init__(config.image_skip, config.scale, config.grid)
        self.config = config
        c = config.channels
        self.head = nn.Conv2d(1, c, 3, padding=1)
        body: list[nn.Module] = []
        for i in range(config.blocks):
            body.append(ResidualBlock(c))
            if (i + 1) % config.attention_every == 0:
                body.append(ReasoningAttention(config))
        self.body = nn.Sequential(*body, nn.Conv2d(c, c, 3, padding=1))
        self.tail = upsampler(c, config.scale)

    def from_features(self, x: torch.Tensor) -> torch.Tensor:
        features = self.head(x)
        return self.tail(self.body(features) + features)  # type: ignore[no-any-return]
