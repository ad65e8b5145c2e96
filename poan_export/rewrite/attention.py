"""POAN's spatial attention as it is exported: three forms, proven equal, merged 1x1 convolutions.

``box`` and ``unfold`` are here, ``flat``, the box form for OpenVINO, in
:mod:`poan_export.rewrite.flat_attention`.

Exact rewrites of ``POAB.project(POAB.spatial(x))``:

* F_c and the 1x1 convolution behind it are one 1x1 convolution W.
* W, split over the branches, moves inside them: ``sum over s of attention_s(W_s v_s)``. The
  concatenation is gone, and each branch yields its own share of the result.
* The patch attention's divisor and the point attention's output convolution move into W_s too.
* Where scores have no unit, the learned factor on them is a number.

Patches at stride 3 tile their maps: unfold and fold are reshapes there, whatever the form.

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

from poan_export.rewrite.flat_attention import FlatMix, FlatScores, inverse_patch_length
from poan_train.networks.attention import PDSB, PointAttention, PyramidAttention, shrink, thinned
from poan_train.networks.patches import Patches, centred, from_patches, inverse_length, to_patches
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


def patches_at(x: torch.Tensor, stride: int) -> torch.Tensor:
    """The 3x3 patches of x (B, C, h, w) at ``stride``, without an Im2col: (B, P, 9 C)."""
    return shifted_copies(x).flatten(2).transpose(1, 2) if stride == 1 else to_patches(x, stride)


def map_of(patches: torch.Tensor, size: tuple[int, int], stride: int) -> torch.Tensor:
    """The overlap-add of patches (B, P, 9 C) at ``stride``, without a Col2Im: (B, C, h, w)."""
    if stride == 1:
        return overlap_add(torch.unflatten(patches.transpose(1, 2), 2, size))
    return from_patches(patches, size, stride)


class PatchesAt(nn.Module):
    """x (B, E, h, w) -> its 3x3 patches at ``stride``: (B, P, 9 E)."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return patches_at(x, self.stride)


class Directions(nn.Module):
    """Vectors of length ``scale`` from x (B, E, h, w): (B, P, 9 E), or (B, hw, E) for pixels.

    ``centre`` takes each channel's mean over the map off first. In float32 in every half precision.
    """

    def __init__(self, stride: int | None, scale: float = 1.0, centre: bool = True) -> None:
        super().__init__()
        self.stride, self.scale, self.centre = stride, scale, centre

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = centred(x) if self.centre else x
        if self.stride is None:
            vectors = x.flatten(2).transpose(1, 2)
        else:
            vectors = patches_at(x, self.stride)
        return vectors * (self.scale * inverse_length(vectors))


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
    """Dense attention of 3x3 patches: query (B, E, h, w), key (B, E, h_k, w_k) -> (B, hw, L).

    In box form the result is already spread over the nine shifts, D[softmax], and is multiplied
    by single pixels; in unfold form it is the softmax, and is multiplied by patches.
    """

    def __init__(self, scale: float, form: Form, cosine: bool = False) -> None:
        super().__init__()
        self.scale, self.form, self.cosine = scale, form, cosine

    def forward(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        (h, w), (h_k, w_k) = query.shape[-2:], key.shape[-2:]
        if self.cosine:
            query, key = centred(query), centred(key)
        factor = self.scale * inverse_patch_length(key)  # (B, 1, h_k, w_k)
        own = inverse_patch_length(query).flatten(2).transpose(1, 2) if self.cosine else None
        if self.form == "unfold":
            q, k = shifted_copies(query), shifted_copies(key) * factor
            scores = q.flatten(2).transpose(1, 2) @ k.flatten(2)
            return torch.softmax(scores if own is None else scores * own, dim=-1)
        pairs = query.flatten(2).transpose(1, 2) @ key.flatten(2)  # (B, hw, L)
        scores = diagonal_box(torch.unflatten(torch.unflatten(pairs, 1, (h, w)), 3, (h_k, w_k)))
        scores = (scores * factor[:, :, None]).flatten(3)  # (B, h, w, L)
        if own is not None:
            scores = scores * torch.unflatten(own, 1, (h, w))
        attention = torch.softmax(scores, dim=-1)
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


class TileScores(nn.Module):
    """Attention of patches at any stride: query patches (B, P, 9 E), key map -> (B, P, L)."""

    def __init__(self, scale: float, rule: Patches) -> None:
        super().__init__()
        self.key = Directions(rule.key_stride, scale, centre=rule.cosine)

    def forward(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        k = self.key(key).to(query.dtype)  # (B, L, 9 E), float32 where queries may be half
        return torch.softmax(query @ k.transpose(1, 2), dim=-1)


class TileMix(nn.Module):
    """Value patches weighted by attention (B, P, L): value (B, V, h_k, w_k) -> (B, V, h, w)."""

    def __init__(self, rule: Patches) -> None:
        super().__init__()
        self.rule = rule

    def forward(
        self, attention: torch.Tensor, value: torch.Tensor, size: tuple[int, int]
    ) -> torch.Tensor:
        y = attention @ patches_at(value, self.rule.key_stride)  # (B, P, 9 V)
        return map_of(y, size, self.rule.query_stride)


PATCH_SCORES = (PatchScores, TileScores)
"""What half precision keeps in float32 of the patch attention."""


def one_head(x: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w) -> (B, 1, C, hw)."""
    return torch.unflatten(x.flatten(2), 1, (1, x.shape[1]))


class PointShare(nn.Module):
    """What the point branch adds to the block's result. (B, C, h, w) -> (B, C, h, w)."""

    def __init__(self, trained: PointAttention, weight: torch.Tensor) -> None:
        super().__init__()
        self.theta, self.phi, self.g = trained.theta, trained.phi, trained.g
        self.stride = trained.stride
        self.directions: nn.ModuleList | None = None
        if trained.log_scale is not None:
            scale = float(trained.log_scale.detach().exp())
            self.directions = nn.ModuleList([Directions(None), Directions(None, scale)])
        self.scores = PointScores()
        self.mix = PointMix()
        if isinstance(trained.out, nn.Conv2d):
            weight = weight @ trained.out.weight.flatten(1)
        self.out = conv1x1(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        few = thinned(x, self.stride)
        query, key = self.theta(x), self.phi(few)  # (B, E, h, w), (B, E, h_k, w_k)
        if self.directions is None:
            q, k = one_head(query).transpose(2, 3), one_head(key)
        else:
            of_query, of_key = self.directions
            q, k = of_query(query)[:, None], of_key(key).transpose(1, 2)[:, None]
        attention = self.scores(q, k)  # (B, 1, hw, L)
        y = self.mix(attention, one_head(self.g(few)).transpose(2, 3))  # (B, 1, hw, V)
        y = torch.unflatten(y.transpose(2, 3).flatten(1, 2), 2, x.shape[-2:])  # (B, V, h, w)
        return self.out(y)  # type: ignore[no-any-return]

    def divide_scores(self) -> None:
        """Have the product yield scores / 1024, and the softmax multiply them back.

        Queries may be as long as intensities make them: with a thousand units scores reach 4e6,
        beyond fp16's 65504, which a thousandth of them does not. A power of two rounds nothing.
        Where queries and keys have a length of their own, there is nothing to divide.
        """
        if self.directions is not None:
            return
        with torch.no_grad():
            for parameter in (*self.theta.parameters(), *self.phi.parameters()):
                parameter.div_(SHARE_OF_SCORES)
        self.scores.softmax.factor = SHARE_OF_SCORES**2


class LevelShare(nn.Module):
    """What one level of the pyramid adds to the block's result.

    ``key`` and ``value`` are shared by the levels. x (B, C, h, w) -> (B, C, h, w). The query is
    the map (B, E, h, w), or at a stride its patches.
    """

    def __init__(
        self, trained: PyramidAttention, index: int, weight: torch.Tensor, form: Form
    ) -> None:
        super().__init__()
        self.level, rule = trained.levels[index], trained.rule
        self.stride = rule.key_stride
        self.key, self.value = trained.key, trained.value
        self.project = conv1x1(weight / rule.fold)
        scale = float(torch.as_tensor(trained.scale(index)).detach())
        self.scores, self.mix = score_and_mix(scale, rule, form)

    def forward(self, x: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        small = shrink(x, self.level, self.stride)
        attention = self.scores(query, self.key(small))
        h, w = x.shape[-2:]
        return self.mix(attention, self.project(self.value(small)), (h, w))  # type: ignore[no-any-return]


def query_of(trained: PyramidAttention) -> nn.Module:
    """What the levels share of the query: x (B, C, h, w) -> its map, or at a stride its patches."""
    rule = trained.rule
    if rule.query_stride == rule.key_stride == 1:
        return trained.query
    patches = Directions(rule.query_stride) if rule.cosine else PatchesAt(rule.query_stride)
    return nn.Sequential(*trained.query, patches)


def score_and_mix(scale: float, rule: Patches, form: Form) -> tuple[nn.Module, nn.Module]:
    """The modules that weigh keys and sum values; ``form`` counts for dense patches alone."""
    if rule.query_stride != 1 or rule.key_stride != 1:
        return TileScores(scale, rule), TileMix(rule)
    if form == "flat":
        return FlatScores(scale, rule.cosine), FlatMix()
    return PatchScores(scale, form, rule.cosine), Mix(form)


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
                self.query = query_of(branch)
                for i, level in enumerate(branch.levels):
                    levels.append(LevelShare(branch, i, pieces[f"level {level:g}"], form))
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
