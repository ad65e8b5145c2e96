"""Spatial attention of POAN: point similarity and 3x3 patch similarity over a feature pyramid.

Sources: POAN (Hu et al., ICIP 2021), Eqs. 1-5; pyramid attention (arXiv:2004.13824) for what
POAN's paper leaves open. The dense patch attention is computed in its *box form*: with
``D[M](p, q) = sum over the nine shifts d of M(p + d, q + d)``, zero outside,

    scores = 10 D[Q^T K] / max(|3x3 patch of K|, 1e-4)        output = D[softmax(scores)] V / 4

which is exactly unfold, normalise, softmax and overlap-add at 96 in place of 864
multiply-accumulates per pair of pixels (for 32 embedding and 64 value channels). That is for
patches at stride 1. At stride 3, the patch as "the minimum search unit" of Eq. 3, patches tile the
map: unfold and fold are reshapes, and there are 81 times fewer pairs.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from poan_train.networks.config import PATCH, POANConfig
from poan_train.networks.patches import (
    Patches,
    centred,
    from_patches,
    inverse_length,
    to_patches,
)
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


PUBLISHED = Patches()


def patch_attention_unfold(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float | torch.Tensor,
    rule: Patches = PUBLISHED,
) -> torch.Tensor:
    """Patch attention as published: unfold, normalise, softmax, overlap-add.

    query (B, E, h, w), key (B, E, h_k, w_k), value (B, V, h_k, w_k) -> (B, V, h, w). With both
    strides 1 it is the reference for :func:`patch_attention_box` and needs nine times its work;
    with both 3 it is the cheapest form there is.
    """
    attention = rule.weights(query, key, scale)  # (B, P, L)
    h, w = query.shape[-2:]
    y = from_patches(attention @ to_patches(value, rule.key_stride), (h, w), rule.query_stride)
    return y if rule.fold == 1.0 else y / rule.fold


def patch_attention_box(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float | torch.Tensor,
    rule: Patches = PUBLISHED,
) -> torch.Tensor:
    """Patch attention at stride 1 in box form, streamed over blocks of query rows.

    query (B, E, h, w), key (B, E, h_k, w_k), value (B, V, h_k, w_k) -> (B, V, h, w). Equal to
    :func:`patch_attention_unfold` up to rounding. A block of query rows is recomputed in the
    backward pass where the whole attention matrix would not fit in :data:`BLOCK_ELEMENTS`.
    """
    batch, _, h, w = query.shape
    h_k, w_k = key.shape[-2:]
    query, key = rule.prepared(query), rule.prepared(key)
    factor = scale * inverse_patch_length(key)
    own = inverse_patch_length(query) if rule.cosine else torch.ones_like(query[:, :1])
    pairs_per_row = w * h_k * w_k * batch
    rows = max(1, min(h, BLOCK_ELEMENTS // pairs_per_row))
    if rows >= h:
        return _box_rows(query, key, value, factor, own, 0, h) / rule.fold
    blocks = []
    for start in range(0, h, rows):
        arguments = (query, key, value, factor, own, start, min(start + rows, h))
        if torch.is_grad_enabled() and query.requires_grad:
            blocks.append(checkpoint(_box_rows, *arguments, use_reentrant=False))
        else:
            blocks.append(_box_rows(*arguments))
    return torch.cat(blocks, dim=2) / rule.fold


def inverse_patch_length(x: torch.Tensor) -> torch.Tensor:
    """1 / max(|3x3 patch of x|, 1e-4) at every position of x (B, E, h, w): (B, 1, h, w)."""
    energy = F.avg_pool2d(x.square().sum(1, keepdim=True), PATCH, 1, 1, divisor_override=1)
    return energy.clamp_min(1e-8).rsqrt()


def _box_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    factor: torch.Tensor,
    own: torch.Tensor,
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
    scores = scores * own[:, 0, inner:outer, :, None, None]
    attention = torch.softmax(scores.flatten(3), dim=-1)  # (B, rows, w, L)
    spread = diagonal_box(attention.view(batch, outer - inner, w, h_k, w_k))
    spread = spread[:, start - inner : stop - inner].reshape(batch, -1, h_k * w_k)
    out = spread @ value.flatten(2).transpose(1, 2)  # (B, rows*w, V)
    return out.transpose(1, 2).reshape(batch, -1, stop - start, w)


class PointAttention(nn.Module):
    """Embedded-Gaussian non-local attention between single pixels (POAN Eqs. 1-2).

    Read to the letter Eqs. 1-2 take the exponential twice, which overflows fp32 from a score of
    4.5; this is the usual embedded Gaussian (arXiv:1711.07971). With ``point_stride`` keys and
    values come from features resized by that much less. Input and output (B, C, h, w).
    """

    def __init__(self, config: POANConfig) -> None:
        super().__init__()
        c, e = config.channels, config.embedding
        self.theta = nn.Conv2d(c, e, 1)
        self.phi = nn.Conv2d(c, e, 1)
        self.g = nn.Conv2d(c, e if config.point_value == "embedded" else c, 1)
        self.out = nn.Conv2d(e, c, 1) if config.point_value == "embedded" else nn.Identity()
        self.stride = config.point_stride
        self.log_scale = learned_scale(config, 1)

    def weights(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Attention (B, hw, L) of theta(x) (B, E, h, w) to phi of the keys (B, E, h_k, w_k)."""
        if self.log_scale is None:
            return torch.softmax(query.flatten(2).transpose(1, 2) @ key.flatten(2), dim=-1)
        q, k = (centred(y).flatten(2).transpose(1, 2) for y in (query, key))  # (B, hw, E)
        scores = q @ k.transpose(1, 2) * (self.log_scale.exp() * inverse_length(k)).transpose(1, 2)
        return torch.softmax(scores * inverse_length(q), dim=-1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, _, h, w = x.shape
        few = thinned(x, self.stride)
        q, k, v = self.theta(x), self.phi(few), self.g(few)
        with torch.autocast(x.device.type, enabled=False):
            q, k, v = at_least_float32(q), at_least_float32(k), at_least_float32(v)
            y = self.weights(q, k) @ v.flatten(2).transpose(1, 2)  # (B, hw, E or C)
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
        self.rule = Patches(
            query_stride=config.query_stride,
            key_stride=config.key_stride,
            fold=config.fold,
            cosine=config.similarity == "cosine",
        )
        self.query = nn.Sequential(nn.Conv2d(c, e, 1), nn.PReLU())
        self.key = nn.Sequential(nn.Conv2d(c, e, 1), nn.PReLU())
        self.value = nn.Sequential(nn.Conv2d(c, c, 1), nn.PReLU())
        self.log_scale = learned_scale(config, len(config.levels))
        forms = {(1, 1): "box", (PATCH, PATCH): "tiles"}
        self.form = forms.get((config.query_stride, config.key_stride), "unfold")

    def scale(self, level: int) -> float | torch.Tensor:
        """Factor on the scores of the ``level``-th level, counted from 0."""
        return self.softmax_scale if self.log_scale is None else self.log_scale[level].exp()

    def maps(self, x: torch.Tensor, level: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys (B, E, h_k, w_k) and values (B, C, h_k, w_k) of one level."""
        small = shrink(x, level, self.rule.key_stride)
        return self.key(small), self.value(small)

    def forward(self, x: torch.Tensor, fuse: torch.Tensor | None = None) -> torch.Tensor:
        """With ``fuse`` (C, levels * C) that product with the levels instead: (B, C, h, w)."""
        if fuse is not None:
            return self.fused(x, fuse)
        attend = patch_attention_box if self.form == "box" else patch_attention_unfold
        query = self.query(x)
        outputs = []
        for i, level in enumerate(self.levels):
            key, value = self.maps(x, level)
            with torch.autocast(x.device.type, enabled=False):
                q, k, v = at_least_float32(query), at_least_float32(key), at_least_float32(value)
                y = attend(q, k, v, self.scale(i), self.rule)
            outputs.append(y.to(x.dtype))
        return torch.cat(outputs, dim=1)

    def fused(self, x: torch.Tensor, fuse: torch.Tensor) -> torch.Tensor:
        """fuse (C, levels * C) times the levels, where patches tile their maps: (B, C, h, w).

        Sums move: each level's columns of ``fuse`` are applied to its values, of which there are
        fewer than positions, and one product with the softmaxes side by side adds the levels.
        """
        plain = x.contiguous()
        maps = [to_patches(shrink(plain, level, PATCH), PATCH) for level in self.levels]
        counts = [patches.shape[1] for patches in maps]
        few = torch.unflatten(
            torch.cat(maps, dim=1), 2, (PATCH**2, -1)
        )  # (B, L of all levels, 9, C)
        query, key = self.query(x), embed(self.key, few)
        pieces = torch.split(fuse, fuse.shape[0], dim=1)
        values = torch.split(embed(self.value, few), counts, dim=1)
        value = torch.cat([F.linear(v, w) for v, w in zip(values, pieces, strict=True)], dim=1)
        with torch.autocast(x.device.type, enabled=False):
            query, key, value = (at_least_float32(y) for y in (query, key, value.flatten(2)))
            scores = torch.split(
                self.tile_scores(query, torch.split(key, counts, dim=1)), counts, 2
            )
            attention = torch.cat([torch.softmax(s, dim=-1) for s in scores], dim=2)  # (B, P, L)
            y = attention @ value  # (B, P, 9 C)
        h, w = x.shape[-2:]
        y = from_patches(y.to(x.dtype), (h, w), PATCH)
        return y if self.rule.fold == 1.0 else y / self.rule.fold

    def tile_scores(self, query: torch.Tensor, keys: Sequence[torch.Tensor]) -> torch.Tensor:
        """Scores (B, P, L of all levels) of query (B, E, h, w), keys (B, L, 9, E) per level."""
        q = to_patches(self.rule.prepared(query), PATCH)  # (B, P, 9 E)
        if self.rule.cosine:
            keys = [key - key.mean(dim=(1, 2), keepdim=True) for key in keys]
        k = torch.cat(list(keys), dim=1).flatten(2)  # (B, L, 9 E)
        scales = [self.scale(i) * torch.ones_like(key[0, :, 0, 0]) for i, key in enumerate(keys)]
        factor = inverse_length(k).transpose(1, 2) * torch.cat(scales)  # (B, 1, L)
        scores = q @ k.transpose(1, 2) * factor
        return scores * inverse_length(q) if self.rule.cosine else scores


def embed(layer: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """A 1x1 convolution and PReLU on x (..., C), channels last."""
    conv, activation = layer
    assert isinstance(conv, nn.Conv2d)
    return activation(F.linear(x, conv.weight.flatten(1), conv.bias))  # type: ignore[no-any-return]


def learned_scale(config: POANConfig, count: int) -> nn.Parameter | None:
    """Logarithms of ``count`` factors on scores, where scores have no unit; else None."""
    if config.similarity == "dot":
        return None
    return nn.Parameter(torch.full((count,), math.log(config.softmax_scale)))


def level_size(size: int, level: float, stride: int) -> int:
    """Size of a map of ``size`` at ``level``: rounded down, or to a multiple of the key patches.

    >>> [level_size(63, level, 3) for level in (1.0, 0.8, 0.6, 0.4)], level_size(64, 0.8, 1)
    ([63, 51, 39, 24], 51)
    """
    if stride == 1:
        return max(1, int(size * level))
    return stride * max(1, int(size * level / stride + 0.5))


def shrink(x: torch.Tensor, level: float, stride: int = 1) -> torch.Tensor:
    """x (B, C, h, w) resized by ``level``: bicubic (a = -0.75), not antialiased, as published."""
    h, w = x.shape[-2:]
    m, n = level_size(h, level, stride), level_size(w, level, stride)
    if (m, n) == (h, w):
        return x
    return resize(x, cubic_matrix(h, m, a=-0.75), cubic_matrix(w, n, a=-0.75))


def thinned(x: torch.Tensor, stride: int) -> torch.Tensor:
    """x (B, C, h, w) resized by 1 / stride: bicubic, antialiased, so that every pixel counts."""
    if stride == 1:
        return x
    h, w = x.shape[-2:]
    m, n = (max(1, round(size / stride)) for size in (h, w))
    return resize(x, cubic_matrix(h, m, antialias=True), cubic_matrix(w, n, antialias=True))


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
        self.apart = False
        """Let every branch give its own output, for who looks into them; the sum is the same."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        *others, last = self.branches
        if isinstance(last, PyramidAttention) and last.form == "tiles" and not self.apart:
            weight = self.fuse.weight.flatten(1)  # (C, width)
            cut = weight.shape[1] - x.shape[1] * len(last.levels)
            bias = self.fuse.bias
            assert bias is not None
            y = last(x, weight[:, cut:]) + bias[:, None, None]
            for branch in others:
                y = y + F.conv2d(branch(x), weight[:, :cut, None, None])
            return y  # type: ignore[no-any-return]
        return self.fuse(torch.cat([b(x) for b in self.branches], 1))  # type: ignore[no-any-return]
