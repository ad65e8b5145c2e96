"""Channel attention of POAN: covariance pooling by eigen-decomposition (NCAB, Eq. 6).

Sources: POAN (ICIP 2021); SAN (CVPR 2019) for the mean over rows; gradient of a matrix function
through its eigen-decomposition by divided differences (Daleckii-Krein), which stays finite for
repeated and for zero eigenvalues where the textbook gradient of eigh does not.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from poan_train.networks.attention import at_least_float32
from poan_train.networks.config import POANConfig


def covariance(x: torch.Tensor, eps: float, floor: float) -> torch.Tensor:
    """Regularised channel covariance of x (B, C, h, w): (B, C, C), symmetric, positive definite.

    ``Sigma + (eps tr(Sigma) / C + floor) I`` with Sigma = X_c X_c^T / (h w). The mean is taken off
    before the product: E[x^2] - mu^2 loses most digits where the mean is large.
    """
    flat = x.flatten(2)  # (B, C, hw)
    flat = flat - flat.mean(dim=2, keepdim=True)
    sigma = flat @ flat.transpose(1, 2) / flat.shape[2]
    c = sigma.shape[1]
    eye = torch.eye(c, dtype=sigma.dtype, device=sigma.device)
    trace = (sigma * eye).sum(dim=(1, 2), keepdim=True)
    return sigma + (eps / c * trace + floor) * eye


class _SymmetricPower(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: torch.Tensor, alpha: float) -> torch.Tensor:
        values, u = torch.linalg.eigh(a)
        values = values.clamp_min(torch.finfo(a.dtype).tiny)
        powers = values**alpha
        ctx.save_for_backward(values, powers, u)
        ctx.alpha = alpha
        root: torch.Tensor = (u * powers[..., None, :]) @ u.mT
        return root

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        values, powers, u = ctx.saved_tensors
        alpha = ctx.alpha
        if alpha == 0.5:  # (sqrt a - sqrt b) / (a - b), with nothing to cancel
            slope = 1 / (powers[..., :, None] + powers[..., None, :])
        else:
            gap = values[..., :, None] - values[..., None, :]
            mean = (values[..., :, None] + values[..., None, :]) / 2
            close = gap.abs() <= 1e-3 * mean  # a second-order error of 1e-7 there
            rise = powers[..., :, None] - powers[..., None, :]
            slope = torch.where(
                close, alpha * mean ** (alpha - 1), rise / torch.where(close, 1.0, gap)
            )
        inner = u.mT @ (grad + grad.mT) @ u / 2
        return u @ (slope * inner) @ u.mT, None


class EighPower(nn.Module):
    """Sigma^alpha = U Lambda^alpha U^T for (B, C, C) symmetric positive definite matrices."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, sigma: torch.Tensor) -> torch.Tensor:
        return _SymmetricPower.apply(sigma, self.alpha)  # type: ignore[no-any-return, no-untyped-call]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a vector is read off Sigma^alpha."""

    alpha: float
    normalised: bool

    def vector(self, root: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """z (B, C) from root = sigma^alpha (B, C, C): the mean over its rows, as in SAN.

        Normalised it is the sum over them, divided by (tr(sigma) / C)^alpha. For alpha = 1/2 its
        mean square is 1^T sigma 1 / tr(sigma): 1 where channels do not correlate, at most C.
        """
        if not self.normalised:
            return root.mean(dim=1)
        c = sigma.shape[1]
        eye = torch.eye(c, dtype=sigma.dtype, device=sigma.device)
        mean = (sigma * eye).sum(dim=(1, 2)) / c  # (B,)
        unit = mean.sqrt() if self.alpha == 0.5 else mean**self.alpha
        return root.sum(dim=1) / unit[:, None]


class CovariancePooling(nn.Module):
    """z: a vector read off Sigma^alpha. (B, C, h, w) -> (B, C), in at least float32."""

    def __init__(self, config: POANConfig) -> None:
        super().__init__()
        self.eps, self.floor = config.eps, config.floor
        self.reading = Reading(alpha=config.alpha, normalised=config.z_norm == "trace")
        self.power: nn.Module = EighPower(config.alpha)

    def covariance(self, x: torch.Tensor) -> torch.Tensor:
        """The regularised covariance of x (B, C, h, w): (B, C, C)."""
        return covariance(x, self.eps, self.floor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            sigma = self.covariance(at_least_float32(x))
            return self.reading.vector(self.power(sigma), sigma)


class NCAB(nn.Module):
    """Non-reduction channel attention: x scaled by softmax(F_S ReLU(F_E z)), both C -> C.

    With the gate's unit "mean" the softmax is multiplied by C.
    """

    def __init__(self, config: POANConfig) -> None:
        super().__init__()
        c = config.channels
        self.pool = CovariancePooling(config)
        self.expand = nn.Linear(c, c)
        self.squeeze = nn.Linear(c, c)
        self.gate = config.gate
        self.gain = float(c) if config.gate_unit == "mean" and config.gate == "softmax" else 1.0

    def weights(self, z: torch.Tensor) -> torch.Tensor:
        """The gate (B, C) for z (B, C)."""
        logits = self.squeeze(torch.relu(self.expand(z)))  # (B, C)
        weights = torch.softmax(logits, 1) if self.gate == "softmax" else torch.sigmoid(logits)
        return weights if self.gain == 1.0 else self.gain * weights

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.weights(self.pool(x).to(x.dtype))
        return x * weights[:, :, None, None].to(x.dtype)


class CAB(nn.Module):
    """First-order channel attention with a sixteenfold reduction (arXiv:1807.02758), for Fig. 4."""

    def __init__(self, config: POANConfig) -> None:
        super().__init__()
        c = config.channels
        self.squeeze = nn.Conv2d(c, max(1, c // 16), 1)
        self.expand = nn.Conv2d(max(1, c // 16), c, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = x.mean(dim=(2, 3), keepdim=True)
        return x * torch.sigmoid(self.expand(torch.relu(self.squeeze(pooled))))


class GlobalContext(nn.Module):
    """A vector made of the channels' means over the tile, the same at every position.

    (B, C, h, w) -> (B, C, 1, 1): what a per-tile constant alone is worth.
    """

    def __init__(self, config: POANConfig) -> None:
        super().__init__()
        c = config.channels
        self.expand = nn.Conv2d(c, c, 1)
        self.squeeze = nn.Conv2d(c, c, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = x.mean(dim=(2, 3), keepdim=True)
        return self.squeeze(torch.relu(self.expand(pooled)))  # type: ignore[no-any-return]
