"""POAN's spatial attention as it is exported: three forms, proven equal, merged 1x1 convolutions.

``box`` and ``unfold`` are here, ``flat``, the box form for OpenVINO, in
:mod:`poan_export.rewrite.flat_attention`.

Exact rewrites of ``POAB.project(POAB.spatial(x))``:

* F_c and the 1x1 convolution behind it are one 1x1 convolution W.
* W, split over the branches, moves inside them: ``sum over s of attention_s(W_s v_s)``. The
  concatenation is gone, and each branch yields its own share of the result.
* The patch attention's 1/4 and the point attention's output convolution move into W_s too.

What a half-precision graph may keep in float32 stands in modules of its own (`*Scores`,
`PointSoftmax`), so that an island has a name.

The point attention stands in the one form that TensorRT fuses into a single kernel, which never
holds the (hw, hw) matrix: products of half precision and rank 4 (one head), queries and values as
wide as each other and at most 256; what lies between the products may be float32. The patches'
product is 288 wide, and their box form sums between the products: neither fuses.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from poan_export.rewrite.flat_attention import FlatMix, FlatScores
from poan_train.networks.attention import PDSB, PointAttention, PyramidAttention, shrink
from poan_train.networks.poan import POAB

Form = Literal["box", "unfold", "flat"]
FORMS: tuple[Form, ...] = ("box", "unfold", "flat")
SHARE_OF_SCORES = 32.0
"""By which queries and keys are divided each, where their product is half precision."""


def diagonal_box(m: torch.Tensor) -> torch.Tensor:
    """D[m] for m (B, h, w, h_k, w_k): the sum over the nine joint shifts of both positions."""
    _, h, w, h_k, w_k = m.shape
    p = F.pad(m, (0, 0, 1, 1, 0, 0, 1, 1))  # h_k and h, one zero on each side
    m = p[:, :h, :, :h_k] + m + p[:, 2:, :, 2:]
    p = F.pad(m, (1, 1, 0, 0, 1, 1))  # w_k and w
    return p[:, :, :w, :, :w_k] + m + p[:, :, 2:, :, 2:]


def shifted_copies(x: torch.Tensor) -> torch.Tensor:
    """The nine shifts of x (B, C, h, w) along the channels, zero outside: (B, 9 C, h, w)."""
    h, w = x.shape[-2:]
    p = F.pad(x, (1, 1, 1, 1))
    return torch.cat([p[:, :, i : i + h, j : j + w] for i in range(3) for j in range(3)], 1)


def overlap_add(x: torch.Tensor) -> torch.Tensor:
    """The adjoint of :func:`shifted_copies`: (B, 9 C, h, w) -> (B, C, h, w)."""
    h, w = x.shape[-2:]
    p = F.pad(x, (1, 1, 1, 1))
    shifts = torch.unflatten(p, 1, (9, x.shape[1] // 9)).unbind(1)
    out = shifts[0][:, :, 2 : 2 + h, 2 : 2 + w]
    for shift in range(1, 9):
        i, j = divmod(shift, 3)
        out = out + shifts[shift][:, :, 2 - i : 2 - i + h, 2 - j : 2 - j + w]
    return out


class PointSoftmax(nn.Module):
    """softmax of scores that were divided by ``factor``: (B, 1, P, L) -> (B, 1, P, L)."""

    factor = 1.0

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        if self.factor != 1.0:
            scores = scores * self.factor
        return torch.softmax(scores, dim=-1)


class PointScores(nn.Module):
    """softmax(Q K): query (B, 1, P, E), key (B, 1, E, L) -> (B, 1, P, L)."""

    def __init__(self) -> None:
        super().__init__()
        self.softmax = PointSoftmax()

    def forward(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return self.softmax(query @ key)  # type: ignore[no-any-return]


class PointMix(nn.Module):
    """Values weighted by attention: (B, 1, P, L), value (B, 1, L, V) -> (B, 1, P, V)."""

    def forward(self, attention: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return attention @ value


class PatchScores(nn.Module):
    """Attention of 3x3 patches: query (B, E, h, w), key (B, E, h_k, w_k) -> (B, hw, L).

    In box form the result is already spread over the nine shifts, D[softmax], and is multiplied
    by single pixels; in unfold form it is the softmax, and is multiplied by patches.
    """

    def __init__(self, scale: float, form: Form) -> None:
        super().__init__()
        self.scale, self.form = scale, form

    def forward(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        (h, w), (h_k, w_k) = query.shape[-2:], key.shape[-2:]
        # |patch| = 3 sqrt(mean over the nine), at least 1e-4. (ONNX's AveragePool has no other
        # divisor than the window; the exporter silently drops `divisor_override`.)
        mean = F.avg_pool2d(key.square().sum(1, keepdim=True), 3, 1, 1)
        factor = self.scale / 3 / mean.clamp_min(1e-8 / 9).sqrt()  # (B, 1, h_k, w_k)
        if self.form == "unfold":
            q, k = shifted_copies(query), shifted_copies(key) * factor
            return torch.softmax(q.flatten(2).transpose(1, 2) @ k.flatten(2), dim=-1)
        pairs = query.flatten(2).transpose(1, 2) @ key.flatten(2)  # (B, hw, L)
        scores = diagonal_box(torch.unflatten(torch.unflatten(pairs, 1, (h, w)), 3, (h_k, w_k)))
        scores = scores * factor[:, :, None]  # (B, h, w, h_k, w_k)
        attention = torch.softmax(scores.flatten(3), dim=-1)
        return diagonal_box(torch.unflatten(attention, 3, (h_k, w_k))).flatten(3).flatten(1, 2)


class Mix(nn.Module):
    """Values weighted by attention (B, hw, L): value (B, V, h_k, w_k) -> (B, V, h, w)."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form

    def forward(
        self, attention: torch.Tensor, value: torch.Tensor, size: tuple[int, int]
    ) -> torch.Tensor:
        if self.form == "unfold":
            value = shifted_copies(value)
        y = attention @ value.flatten(2).transpose(1, 2)  # (B, hw, V)
        y = torch.unflatten(y.transpose(1, 2), 2, size)  # (B, V, h, w)
        return overlap_add(y) if self.form == "unfold" else y


def one_head(x: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w) -> (B, 1, C, hw)."""
    return torch.unflatten(x.flatten(2), 1, (1, x.shape[1]))


class PointShare(nn.Module):
    """What the point branch adds to the block's result. (B, C, h, w) -> (B, C, h, w)."""

    def __init__(self, trained: PointAttention, weight: torch.Tensor) -> None:
        super().__init__()
        self.theta, self.phi, self.g = trained.theta, trained.phi, trained.g
        self.scores = PointScores()
        self.mix = PointMix()
        if isinstance(trained.out, nn.Conv2d):
            weight = weight @ trained.out.weight.flatten(1)
        self.out = conv1x1(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = one_head(self.theta(x)).transpose(2, 3)  # (B, 1, hw, E)
        attention = self.scores(q, one_head(self.phi(x)))  # (B, 1, hw, hw)
        y = self.mix(attention, one_head(self.g(x)).transpose(2, 3))  # (B, 1, hw, V)
        y = torch.unflatten(y.transpose(2, 3).flatten(1, 2), 2, x.shape[-2:])  # (B, V, h, w)
        return self.out(y)  # type: ignore[no-any-return]

    def divide_scores(self) -> None:
        """Have the product yield scores / 1024, and the softmax multiply them back.

        Queries are not normalised: with intensities of a thousand units scores reach 4e6, beyond
        fp16's 65504, which a thousandth of them does not. A power of two rounds nothing.
        """
        with torch.no_grad():
            for parameter in (*self.theta.parameters(), *self.phi.parameters()):
                parameter.div_(SHARE_OF_SCORES)
        self.scores.softmax.factor = SHARE_OF_SCORES**2


class LevelShare(nn.Module):
    """What one level of the pyramid adds to the block's result.

    ``key`` and ``value`` are shared by the levels. x (B, C, h, w) -> (B, C, h, w).
    """

    def __init__(
        self, trained: PyramidAttention, level: float, weight: torch.Tensor, form: Form
    ) -> None:
        super().__init__()
        self.level = level
        self.key, self.value = trained.key, trained.value
        self.project = conv1x1(weight / 4)
        flat = form == "flat"
        scale = trained.softmax_scale
        self.scores = FlatScores(scale) if flat else PatchScores(scale, form)
        self.mix = FlatMix() if flat else Mix(form)

    def forward(self, x: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        small = shrink(x, self.level)
        attention = self.scores(query, self.key(small))
        h, w = x.shape[-2:]
        return self.mix(attention, self.project(self.value(small)), (h, w))  # type: ignore[no-any-return]


class MergedSpatial(nn.Module):
    """``POAB.project(POAB.spatial(x))`` as a sum of shares. (B, C, h, w) -> (B, C, h, w)."""

    def __init__(self, block: POAB, form: Form) -> None:
        super().__init__()
        weight, bias = merged_projection(block)
        pieces = dict(split_projection(block, weight))
        self.point: nn.Module | None = None
        self.query: nn.Module | None = None
        levels: list[nn.Module] = []
        assert isinstance(block.spatial, PDSB)
        for branch in block.spatial.branches:
            if isinstance(branch, PointAttention):
                self.point = PointShare(branch, pieces["point"])
                if isinstance(branch.out, nn.Conv2d) and branch.out.bias is not None:
                    bias = bias + pieces["point"] @ branch.out.bias
            elif isinstance(branch, PyramidAttention):
                self.query = branch.query
                for level in branch.levels:
                    levels.append(LevelShare(branch, level, pieces[f"level {level:g}"], form))
        self.levels = nn.ModuleList(levels)
        self.bias = nn.Parameter(bias.detach().clone()[:, None, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bias if self.point is None else self.bias + self.point(x)
        if self.query is not None:
            query = self.query(x)
            for level in self.levels:
                y = y + level(x, query)
        return y


def merged_projection(block: POAB) -> tuple[torch.Tensor, torch.Tensor]:
    """F_c and the 1x1 convolution behind it as one: weight (C, width) and bias (C,)."""
    assert isinstance(block.spatial, PDSB)
    assert isinstance(block.project, nn.Conv2d)
    fuse, project = block.spatial.fuse, block.project
    outer = project.weight.detach().flatten(1)
    assert fuse.bias is not None
    assert project.bias is not None
    weight = outer @ fuse.weight.detach().flatten(1)
    return weight, outer @ fuse.bias.detach() + project.bias.detach()


def split_projection(block: POAB, weight: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """(``point`` or ``level 0.8``, its columns (C, C) of ``weight``), in the branches' order."""
    names: list[str] = []
    assert isinstance(block.spatial, PDSB)
    for branch in block.spatial.branches:
        if isinstance(branch, PointAttention):
            names.append("point")
        elif isinstance(branch, PyramidAttention):
            names += [f"level {level:g}" for level in branch.levels]
    c = weight.shape[0]
    return [(name, weight[:, i * c : (i + 1) * c]) for i, name in enumerate(names)]


def conv1x1(weight: torch.Tensor) -> nn.Conv2d:
    """A 1x1 convolution without bias from weight (C_out, C_in)."""
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=False)
    conv.weight = nn.Parameter(weight.detach().clone()[:, :, None, None])
    return conv
