"""Square root of covariances by matrix products: what stands in for eigh in an exported model.

Both schemes are coupled iterations on (Y, Z), which tend to A^(1/2) and A^(-1/2) of the normalised
A; they need no decision that depends on data, so they unroll into a fixed graph.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

RootName = Literal["newton-schulz", "quintic"]

# Greedy minimax odd quintics a x + b x^3 + c x^5 towards sign(x) on (0, 1], in the manner of
# Polar Express (arXiv:2505.16932); later steps use the limit of the sequence.
QUINTIC_STEPS: tuple[tuple[float, float, float], ...] = (
    (4.2532, -12.6074, 9.3543),
    (4.2402, -12.4989, 9.2587),
    (4.1851, -12.0438, 8.8587),
    (3.9539, -10.2557, 7.3018),
    (3.1568, -5.4569, 3.3000),
    (2.1011, -1.7448, 0.6438),
)
QUINTIC_LIMIT = (15 / 8, -5 / 4, 3 / 8)
"""Of every step behind the table: they sum to 1, so that 1 stays 1. The published seventh step,
printed with four digits, sums to 0.9999 and left an error of 1e-4 in z."""
# Every step of the table reaches 1 inside the interval and at its end, where its slope is 13: a
# value of 1.0001, rounding or the table's four digits, would grow past any bound in five steps.
# So each step of the table is taken at x / 1.01, as the published implementation does.
QUINTIC_SAFETY = 1.01


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A square-root iteration and its number of steps."""

    name: RootName
    iterations: int

    def __post_init__(self) -> None:
        if self.iterations < 2:
            raise ValueError(f"need at least 2 iterations, got {self.iterations}")

    @property
    def products(self) -> int:
        """Products of C x C matrices per root: the cost.

        >>> Scheme(name="newton-schulz", iterations=15).products
        42
        >>> Scheme(name="quintic", iterations=7).products
        25
        """
        if self.name == "newton-schulz":
            return 3 * self.iterations - 3
        return 4 * self.iterations - 3

    def module(self) -> nn.Module:
        """A module (B, C, C) -> (B, C, C) with no parameters."""
        kind = NewtonSchulz if self.name == "newton-schulz" else Quintic
        return kind(self.iterations)


def quintic_step(step: int) -> tuple[float, float, float]:
    """Coefficients (a, b, c) of the quintic at ``step``, counted from 0."""
    if step >= len(QUINTIC_STEPS):
        return QUINTIC_LIMIT
    a, b, c = QUINTIC_STEPS[step]
    return a / QUINTIC_SAFETY, b / QUINTIC_SAFETY**3, c / QUINTIC_SAFETY**5


class NewtonSchulz(nn.Module):
    """Coupled Newton-Schulz after division by the trace (arXiv:1712.01034).

    Symmetric positive definite (B, C, C) -> its square root. The error of an eigenvalue l falls
    quadratically once 1.5^steps has lifted sqrt(l / trace) to about one.
    """

    def __init__(self, iterations: int) -> None:
        super().__init__()
        self.iterations = iterations

    def forward(self, sigma: torch.Tensor) -> torch.Tensor:
        eye = torch.eye(sigma.shape[-1], dtype=sigma.dtype, device=sigma.device)
        norm = (sigma * eye).sum(dim=(1, 2), keepdim=True)  # (B, 1, 1), the trace
        y = sigma / norm
        z = 1.5 * eye - 0.5 * y
        y = torch.bmm(y, z)
        for step in range(1, self.iterations):
            factor = 1.5 * eye - 0.5 * torch.bmm(z, y)
            y = torch.bmm(y, factor)
            if step < self.iterations - 1:
                z = torch.bmm(factor, z)
        return y * norm.sqrt()

    def extra_repr(self) -> str:
        return f"iterations={self.iterations}"


class Quintic(nn.Module):
    """Coupled quintic steps after division by the Frobenius norm. (B, C, C) -> (B, C, C)."""

    def __init__(self, iterations: int) -> None:
        super().__init__()
        self.iterations = iterations

    def forward(self, sigma: torch.Tensor) -> torch.Tensor:
        eye = torch.eye(sigma.shape[-1], dtype=sigma.dtype, device=sigma.device)
        # Scaled by the trace first: the squares of a tiny Sigma would underflow.
        trace = (sigma * eye).sum(dim=(1, 2), keepdim=True)
        y = sigma / trace
        norm = y.square().sum(dim=(1, 2), keepdim=True).sqrt()
        y = y / norm
        z = eye
        for step in range(self.iterations):
            a, b, c = quintic_step(step)
            w = torch.bmm(z, y) if step else y
            factor = a * eye + b * w + c * torch.bmm(w, w)
            y = torch.bmm(y, factor)
            if step < self.iterations - 1:
                z = torch.bmm(factor, z) if step else factor
        return y * (norm * trace).sqrt()

    def extra_repr(self) -> str:
        return f"iterations={self.iterations}"
