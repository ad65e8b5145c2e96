"""Is the network better than interpolation? Measured on real tiles, before anything is exported.

Parity says that a file answers as PyTorch does; a network of a few steps passes it ten decibels
below bicubic interpolation. So the exporter measures the gain, writes it into the manifest, and
refuses a network that is worse than what needs no network.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from poan_export.gate.parity import run_torch
from poan_export.gate.real_tiles import Case
from poan_runtime.geometry import Grid
from poan_train.degrade import sinc
from poan_train.evaluate import bicubic
from poan_train.metrics import psnr

MOST_TILES = 8


class WorseThanInterpolation(Exception):
    """The network loses to bicubic and sinc: exit status 3, unless --allow-worse."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """PSNR in dB, mean over real tiles; ``validation`` is the checkpoint's own gain over bicubic.

    ``own_tiles`` says that the user named the scans: those that a dependency packages are of no
    contrast and no scanner that the network has to serve.
    """

    sr: float
    bicubic: float
    sinc: float
    validation: float | None
    own_tiles: bool

    @property
    def gain(self) -> float:
        """Over the better of the two interpolations on the tiles."""
        return self.sr - max(self.bicubic, self.sinc)

    @property
    def shortfall(self) -> str | None:
        """A warning where interpolation does better on the tiles; None where the network does."""
        rivals = {"bicubic": self.bicubic, "sinc": self.sinc}
        better = [name for name, psnr in rivals.items() if self.sr < psnr]
        return f"below {' and '.join(better)} on real tiles; train longer" if better else None

    @property
    def is_worse(self) -> bool:
        """Below bicubic on its own validation, or below both on tiles that count."""
        below = self.sr < min(self.bicubic, self.sinc)
        if self.validation is None:
            return below
        return self.validation < 0 or (self.own_tiles and below)

    def __str__(self) -> str:
        own = f"; its validation: {self.validation:+.2f} dB" if self.validation is not None else ""
        return (
            f"quality on real tiles: {self.sr:.2f} dB, bicubic {self.bicubic:.2f}, "
            f"sinc {self.sinc:.2f}: {self.gain:+.2f} dB{own}"
        )


def quality_of(
    network: nn.Module,
    cases: Sequence[Case],
    *,
    scale: int,
    grid: Grid,
    metrics: Mapping[str, Any],
    own_tiles: bool,
) -> Quality:
    """Measure the network on real LR tiles that have a truth, spread over what is given."""
    picks = np.linspace(0, len(cases) - 1, min(MOST_TILES, len(cases))).astype(int)
    chosen = [cases[i] for i in sorted({int(i) for i in picks}) if cases[i].hr is not None]
    lr = np.stack([case.lr for case in chosen])  # (N, 1, tile, tile)
    hr = np.concatenate([np.asarray(case.hr) for case in chosen])  # (N, s tile, s tile)
    answers = run_torch(network, lr, torch.float32)["output"][:, 0]
    validation = None
    if "tile_psnr" in metrics and "tile_psnr_bicubic" in metrics:
        validation = float(metrics["tile_psnr"] - metrics["tile_psnr_bicubic"])
    return Quality(
        sr=psnr(hr, answers, "slice"),
        bicubic=psnr(hr, bicubic(lr[:, 0], scale, grid), "slice"),
        sinc=psnr(hr, sinc(lr[:, 0], scale, grid), "slice"),
        validation=validation,
        own_tiles=own_tiles,
    )


def refuse_worse(quality: Quality, *, allowed: bool) -> None:
    """Raises WorseThanInterpolation unless it is ``allowed``."""
    if quality.is_worse and not allowed:
        raise WorseThanInterpolation(
            f"{quality}: worse than interpolation; train longer, or --allow-worse exports it"
        )
