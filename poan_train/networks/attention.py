"""Spatial attention of POAN: point similarity and 3x3 patch similarity over a feature pyramid.

Sources: POAN (Hu et al., ICIP 2021), Eqs. 1-5; pyramid attention (arXiv:2004.13824) for what
POAN's paper leaves open. The patch attention is computed in its *box form*: with
``D[M](p, q) = sum over the nine shifts d of M(p + d, q + d)``, zero outside,

    scores = 10 D[Q^T K] / max(|3x3 patch of K|, 1e-4)        output = D[softmax(scores)] V / 4

which is exactly unfold, normalise, softmax and overlap-add at 96 in place of 864
multiply-accumulates per pair of pixels (for 32 embedding and 64 value channels).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from poan_train.networks.config import POANConfig
from poan_train.resample import cubic_matrix, resize

BLOCK_ELEMENTS = 1 << 23  # pairs of one row block: 32 MiB in fp32, near a CPU's last-level cache


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Half precision to float32; float32 and float64 stay."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _diagonal_sum(m: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Sum of m over the shifts -1, 0, 1 taken along two axes at once, zero outside."""
    m = m.movedim((rows, columns), (0, 1))
    out = m.clone()
    out[1:, 1:] += m[:-1, :-1]
    out[:-1, :-1] += m[1:, 1:]
    return out.movedim((0, 1), (rows, columns))


class _DiagonalBox(torch.autograd.Function):
    """D with its own gradient: D is symmetric, so the gradient of D is D."""

    @staticmethod
    def forward(ctx: Any, m: torch.Tensor) -> torch.Tensor:
        return _diagonal_sum(_diagonal_sum(m, 1, 3), 2, 4)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return _diagonal_sum(_diagonal_sum(grad, 1, 3), 2, 4)


def diagonal_box(m: torch.Tensor) -> torch.Tensor:
    """D[m] for m (B, h, w, h_k, w_k): the sum over the nine joint shifts of both positions."""
    if m.requires_grad and torch.is_grad_enabled():
        return _DiagonalBox.apply(m)  # type: ignore[no-any-return, no-untyped-call]
    _, h, w, h_k, w_k = m.shape
    p = F.pad(m, (0, 0, 1, 1, 0, 0, 1, 1))  # h_k and h, one zero on each side
    m = p[:, :h, :, :h_k] + p[:, 1 : h + 1, :, 1 : h_k + 1] + p[:, 2:, :, 2:]
    p = F.pad(m, (1, 1, 0, 0, 1, 1))  # w_k and w
    return p[:, :, :w, :, :w_k] + p[:, :, 1 : w + 1, :, 1 : w_k + 1] + p[:, :, 2:, :, 2:]


def patch_attention_unfold(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> torch.Tensor:
    """Patch attention as published: unfold, normalise, softmax, overlap-add / 4.

    query (B, E, h, w), key (B, E, h_k, w_k), value (B, V, h_k, w_k) -> (B, V, h, w).
    The reference for :func:`patch_attention_box`; it needs nine times the work.
    """
    h, w = query.shape[-2:]
    q = F.unfold(query, 3, padding=1).transpose(1, 2)  # (B, hw, 9E)
    k = F.unfold(key, 3, padding=1)  # (B, 9E, L)
    k = k / k.norm(dim=1, keepdim=True).clamp_min(1e-4)
    v = F.unfold(value, 3, padding=1).transpose(1, 2)  # (B, L, 9V)
    attention = torch.softmax(scale * (q @ k), dim=-1)  # (B, hw, L)
    return F.fold((attention @ v).transpose(1, 2), (h, w), 3, padding=1) / 4


def patch_attention_box(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> torch.Tensor:
    """Patch attention in box form, streamed over blocks of query rows.

    query (B, E, h, w), key (B, E, h_k, w_k), value (B, V, h_k, w_k) -> (B, V, h, w). Equal to
    :func:`patch_attention_unfold` up to rounding. A block of query rows is recomputed in the
    backward pass where the whole attention matrix would not fit in :data:`BLOCK_ELEMENTS`.
    """
    batch, _, h, w = query.shape
    h_k, w_k = key.shape[-2:]
    energy = F.avg_pool2d(key.square().sum(1, keepdim=True), 3, 1, 1, divisor_override=1)
    factor = scale / energy.clamp_min(1e-8).sqrt()  # |patch| >= 1e-4, as in the unfold form
    pairs_per_row = w * h_k * w_k * batch
    rows = max(1, min(h, BLOCK_ELEMENTS // pairs_per_row))
    if rows >= h:
        return _box_rows(query, key, value, factor, 0, h)
    blocks = []
    for start in range(0, h, rows):
        arguments = (query, key, value, factor, start, min(start + rows, h))
        if torch.is_grad_enabled() and query.requires_grad:
            blocks.append(checkpoint(_box_rows, *arguments, use_reentrant=False))
        else:
            blocks.append(_box_rows(*arguments))
    return torch.cat(blocks, dim=2)


def _box_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    factor: torch.Tensor,
    start: int,
    stop: int,
) -> torch.Tensor:
    """Rows start..stop of the output: a halo of two query rows on Q^T K, one on the softmax."""
    batch, _, h, w = query.shape
    h_k, w_k = key.shape[-2:]
    low, high = max(start - 2, 0), min(stop + 2, h)
    q = query[:, :, low:high].flatten(2).transpose(1, 2)  # (B, rows*w, E)
    scores = diagonal_box((q @ key.flatten(2)).view(batch, high - low, w, h_k, w_k))
    inner, outer = max(start - 1, 0), min(stop + 1, h)
    scores = scores[:, inner - low : outer - low] * factor[:, :, None]
    attention = torch.softmax(scores.flatten(3), dim=-1)  # (B, rows, w, L)
    spread = diagonal_box(attention.view(batch, outer - inner, w, h_k, w_k))
    spread = spread[:, start - inner : stop - inner].reshape(batch, -1, h_k * w_k)
    out = spread @ value.flatten(2).transpose(1, 2)  # (B, rows*w, V)
    return out.transpose(1, 2).reshape(batch, -1, stop - start, w) / 4


class PointAttention(nn.Module):
    """Embedded-Gaussian non-local attention between single pixels (POAN Eqs. 1-2).

    Read to the letter Eqs. 1-2 take the exponential twice, which overflows fp32 from a score of
    4.5; this is the usual embedded Gaussian (arXiv:1711.07971). Input and output (B, C, h, w).
    """

    def __init__(self, config: POANConfig) -> None:
        super().__init__()
        c, e = config.channels, config.embedding
        self.theta = nn.Conv2d(c, e, 1)
        self.phi = nn.Conv2d(c, e, 1)
        self.g = nn.Conv2d(c, e if config.point_value == "embedded" else c, 1)
        self.out = nn.Conv2d(e, c, 1) if config.point_value == "embedded" else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, _, h, w = x.shape
        q = self.theta(x).flatten(2).transpose(1, 2)  # (B, hw, E)
        k = self.phi(x).flatten(2)  # (B, E, hw)
        v = self.g(x).flatten(2).transpose(1, 2)  # (B, hw, E or C)
        with torch.autocast(x.device.type, enabled=False):
            q, k, v = at_least_float32(q), at_least_float32(k), at_least_float32(v)
            y = torch.softmax(q @ k, dim=-1) @ v
        y = y.transpose(1, 2).reshape(b, -1, h, w).to(x.dtype)
        return self.out(y)  # type: ignore[no-any-return]


class PyramidAttention(nn.Module):
    """3x3 patch attention from full-resolution queries to a pyramid of resized features.

    One set of 1x1 embeddings serves all levels; softmax per level (POAN Eq. 4). The levels are
    ``config.pyramid`` and, with ``config.patch_at_full_scale``, 1.0 before them.
    (B, C, h, w) -> (B, levels * C, h, w).
    """

    def __init__(self, config: POANConfig) -> None:
        super().__init__()
        c, e = config.channels, config.embedding
        self.levels = config.levels
        self.softmax_scale = config.softmax_scale
        self.query = nn.Sequential(nn.Conv2d(c, e, 1), nn.PReLU())
        self.key = nn.Sequential(nn.Conv2d(c, e, 1), nn.PReLU())
        self.value = nn.Sequential(nn.Conv2d(c, c, 1), nn.PReLU())
        self.form = "box"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attend = patch_attention_box if self.form == "box" else patch_attention_unfold
        query = self.query(x)
        outputs = []
        for level in self.levels:
            small = shrink(x, level)
            key, value = self.key(small), self.value(small)
            with torch.autocast(x.device.type, enabled=False):
                q, k, v = at_least_float32(query), at_least_float32(key), at_least_float32(value)
                y = attend(q, k, v, self.softmax_scale)
            outputs.append(y.to(x.dtype))
        return torch.cat(outputs, dim=1)


def shrink(x: torch.Tensor, level: float) -> torch.Tensor:
    """x (B, C, h, w) resized by ``level``: bicubic (a = -0.75), not antialiased, as published."""
    if level == 1.0:
        return x
    h, w = x.shape[-2:]
    rows = cubic_matrix(h, max(1, int(h * level)), a=-0.75)
    columns = cubic_matrix(w, max(1, int(w * level)), a=-0.75)
    return resize(x, rows, columns)


class PDSB(nn.Module):
    """Pyramid dual self-similarity block: F_c fuses point and pyramid branches (POAN Eq. 5)."""

    def __init__(self, config: POANConfig) -> None:
        super().__init__()
        branches: list[nn.Module] = []
        width = 0
        if config.point:
            branches.append(PointAttention(config))
            width += config.channels
        if config.levels:
            branches.append(PyramidAttention(config))
            width += config.channels * len(config.levels)
        self.branches = nn.ModuleList(branches)
        self.fuse = nn.Conv2d(width, config.channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fuse(torch.cat([b(x) for b in self.branches], 1))  # type: ignore[no-any-return]
