"""POAN: pyramid orthogonal attention network (Hu et al., ICIP 2021)."""

import torch
from torch import nn

from poan_train.networks.attention import PDSB
from poan_train.networks.blocks import ResidualBlock, SkippedNetwork, upsampler
from poan_train.networks.config import POANConfig
from poan_train.networks.covariance import CAB, NCAB, GlobalContext


class POAB(nn.Module):
    """Orthogonal attention block (Eq. 7): spatial, then channel attention, with their skips."""

    def __init__(self, config: POANConfig) -> None:
        super().__init__()
        c = config.channels
        self.spatial: nn.Module = nn.Identity()
        self.project: nn.Module = nn.Identity()
        if config.has_spatial:
            self.spatial = PDSB(config)
            self.project = nn.Conv2d(c, c, 1)
        channel = {"ncab": NCAB, "cab": CAB, "context": GlobalContext, "none": None}[config.channel]
        self.channel = channel(config) if channel else None
        self.out = nn.Conv2d(c, c, 1)
        self.bypass = False
        """Return the input unchanged: the trainer's way to let the backbone learn first."""
        if config.zero_start:
            for parameter in self.out.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.bypass:
            return x
        x_p = self.project(self.spatial(x))
        x_s = x_p if self.channel is None else self.channel(x_p) + x_p
        return self.out(x_s) + x  # type: ignore[no-any-return]


class POAN(SkippedNetwork):
    """LR (N, 1, h, w) -> SR (N, 1, s h, s w), in the units of the LR."""

    def __init__(self, config: POANConfig) -> None:
        super().__init__(config.image_skip, config.scale, config.grid)
        self.config = config
        c = config.channels
        self.head = nn.Conv2d(1, c, 3, padding=1)
        body: list[nn.Module] = [
            ResidualBlock(c, config.residual_scale) for _ in range(config.blocks)
        ]
        if config.has_poab:
            for after in sorted((config.poab_after, *config.more_poab_after), reverse=True):
                body.insert(after, POAB(config))
        self.body = nn.Sequential(*body, nn.Conv2d(c, c, 3, padding=1))
        self.tail = upsampler(c, config.scale)

    def from_features(self, x: torch.Tensor) -> torch.Tensor:
        features = self.head(x)
        return self.tail(self.body(features) + features)  # type: ignore[no-any-return]
