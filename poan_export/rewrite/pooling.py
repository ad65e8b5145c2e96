"""Covariance pooling as it is exported: the same numbers, summed so that float32 suffices.

The regularised covariance has a condition number up to C / eps. A plain float32 matrix product
adds hundreds of terms one after the other; its rounding is some 5e-7 of the largest eigenvalue.
At eps 1e-5 that is as large as the smallest one, and moved z by 7e-4 to 3e-3 on background tiles
of a trained network. Blocks of 16 pixels, added in a tree, leave 1e-4.

The mean is taken off twice. A mean summed one term after the other (ONNX Runtime's ReduceMean) is
1e-6 off; where it is 3000 times the deviation, as on dark tiles, what is left of it adds 1e-5 of
the largest eigenvalue. The second pass takes off the mean of what is left.
"""

import torch

from poan_train.networks.attention import at_least_float32
from poan_train.networks.covariance import CovariancePooling

BLOCK = 16
"""Pixels that one product adds up."""
BRANCHES = 8
"""Partial sums that one level of the tree adds up."""


def largest_divisor(n: int, limit: int) -> int:
    """The largest divisor of ``n`` that is at most ``limit``.

    >>> largest_divisor(4096, 16), largest_divisor(169, 16), largest_divisor(17, 16)
    (16, 13, 1)
    """
    return max(d for d in range(1, limit + 1) if n % d == 0)


def tree_sum(parts: torch.Tensor) -> torch.Tensor:
    """Sum of parts (B, n, C, C) over n, :data:`BRANCHES` at a time: (B, C, C)."""
    while parts.shape[1] > 1:
        n = parts.shape[1]
        branches = largest_divisor(n, BRANCHES)
        branches = n if branches == 1 else branches
        parts = torch.unflatten(parts, 1, (n // branches, branches)).sum(dim=2)
    return parts[:, 0]


def blocked_covariance(x: torch.Tensor, eps: float, floor: float) -> torch.Tensor:
    """The covariance of ``poan_train``, summed in a tree. (B, C, h, w) -> (B, C, C)."""
    flat = x.flatten(2)  # (B, C, hw)
    flat = flat - flat.mean(dim=2, keepdim=True)
    flat = flat - flat.mean(dim=2, keepdim=True)
    pixels, c = flat.shape[2], flat.shape[1]
    block = largest_divisor(pixels, BLOCK)
    blocks = torch.unflatten(flat, 2, (pixels // block, block)).transpose(1, 2)  # (B, n, C, block)
    sigma = tree_sum(blocks @ blocks.transpose(2, 3)) / pixels
    eye = torch.eye(c, dtype=sigma.dtype, device=sigma.device)
    trace = (sigma * eye).sum(dim=(1, 2), keepdim=True)
    # eps tr / C + floor, factored: the ONNX optimiser takes an addend below 1e-8 for zero.
    return sigma + (eps / c * (trace + floor * c / eps)) * eye


class BlockedPooling(CovariancePooling):
    """:class:`CovariancePooling` with :func:`blocked_covariance`. (B, C, h, w) -> (B, C)."""

    def __init__(self, trained: CovariancePooling) -> None:
        torch.nn.Module.__init__(self)
        self.eps, self.floor = trained.eps, trained.floor
        self.reading, self.power = trained.reading, trained.power

    def covariance(self, x: torch.Tensor) -> torch.Tensor:
        return blocked_covariance(x, self.eps, self.floor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sigma = self.covariance(at_least_float32(x))
        return self.reading.vector(self.power(sigma), sigma)
