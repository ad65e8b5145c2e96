"""The patch attention in box form without a single copy of the map: its shifts are offsets.

D[M], the sum over nine joint shifts of query and key, is separable into rows and columns. Where
the map of all pairs lies flat in memory, query after query, a joint shift by one row (or column)
of both positions is one constant offset, so that each of the two sums adds three windows of one
tensor. A runtime that takes a Split without copying (OpenVINO) then reads the map once and writes
it once per sum, where padding and slicing five axes copied it six times: 14 ms in place of 21 for
a level of 44 x 44 in bf16, 22 in place of 41 in float32 (one core).

A shift beyond an edge must find zero, and the flat neighbour of an edge is another row:

* Keys end every row with a column of zeros, and the grid with a row of zeros. Neighbouring rows,
  and neighbouring queries, share them. These *edge keys* get no attention.
* Queries end every row with a zero too, and rows of zeros stand above and below. In the second D
  their attention, which a softmax cannot make zero, is masked.
* Some queries more stand at both ends, so that every window lies inside of the tensor.
"""

import torch
import torch.nn.functional as F
from torch import nn

NEVER = -1e4
"""Added to the score of an edge key: exp of it is zero, and bf16 holds it."""
MARGINS = (6, 5, 3, 2)
"""Queries at either end of: pairs, their row sums, the attention, its row sums. A row sum takes
windows up to one query beyond its row, a column sum two."""


def window(x: torch.Tensor, start: int, length: int) -> torch.Tensor:
    """``x[:, start : start + length]`` as a Split, which a runtime may take without a copy."""
    return torch.split(x, [start, length, x.shape[1] - start - length], dim=1)[1]


def three_windows(
    x: torch.Tensor, centre: int, offset: int, queries: int, keys: int
) -> list[torch.Tensor]:
    """Windows (B, queries, keys) of flat ``x`` at ``centre`` - offset, + 0 and + offset."""
    starts = (centre - offset, centre, centre + offset)
    return [
        torch.unflatten(window(x, start, queries * keys), 1, (queries, keys)) for start in starts
    ]


def with_edges(x: torch.Tensor, value: float = 0.0) -> torch.Tensor:
    """x (B, C, h_k, w_k) with its edge keys, flat: (B, C, (h_k + 1) (w_k + 1))."""
    return F.pad(x, (0, 1, 0, 1), value=value).flatten(2)


class FlatScores(nn.Module):
    """D[softmax(10 D[Q K] / |patch|)]: (B, E, h, w), (B, E, h_k, w_k) -> (B, h (w + 1), L).

    L counts the edge keys; every row of queries has a last one too many.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        (h, w), (h_k, w_k) = query.shape[-2:], key.shape[-2:]
        wide, keys = w + 1, (h_k + 1) * (w_k + 1)
        row, column = wide * keys + w_k + 1, keys + 1
        mean = F.avg_pool2d(key.square().sum(1, keepdim=True), 3, 1, 1)  # of nine squared norms
        factor = with_edges(self.scale / 3 / mean.clamp_min(1e-8 / 9).sqrt())  # (B, 1, L)
        never = with_edges(torch.zeros(1, 1, h_k, w_k, dtype=key.dtype, device=key.device), NEVER)
        # In front of a window it keeps the runtime from summing in place, which would copy it
        # first; what it takes away are sums at edge keys.
        inside = factor.sign()

        rows = F.pad(query, (0, 1, 2, 2)).flatten(2)  # two rows above and below
        pairs = F.pad(rows, (MARGINS[0], MARGINS[0])).transpose(1, 2) @ with_edges(key)
        queries = (h + 2) * wide + 2 * MARGINS[1]
        above, here, below = three_windows(pairs.flatten(1), (wide + 1) * keys, row, queries, keys)
        sums = inside * above + here + below
        queries = (h + 2) * wide + 2 * MARGINS[2]
        left, here, right = three_windows(sums.flatten(1), 2 * keys, column, queries, keys)
        scores = factor * left + factor * here + factor * right + never
        attention = torch.softmax(scores, dim=-1)

        real = self._real(h, w, query)
        queries = h * wide + 2 * MARGINS[3]
        windows = three_windows(attention.flatten(1), (wide + 1) * keys, row, queries, keys)
        masks = [real[:, start : start + queries] for start in (1, wide + 1, 2 * wide + 1)]
        above, here, below = (mask * part for mask, part in zip(masks, windows, strict=True))
        sums = inside * above + here + below
        left, here, right = three_windows(sums.flatten(1), 2 * keys, column, h * wide, keys)
        return inside * left + here + right

    @staticmethod
    def _real(h: int, w: int, like: torch.Tensor) -> torch.Tensor:
        """1 for a query of the image, 0 for one that was added: (1, (h + 2) (w + 1) + 6, 1)."""
        image = torch.ones(1, h, w, dtype=like.dtype, device=like.device)
        rows = F.pad(image, (0, 1, 1, 1)).flatten(1)
        return F.pad(rows, (MARGINS[2], MARGINS[2]))[..., None]


class FlatMix(nn.Module):
    """Values weighted by `FlatScores`: value (B, V, h_k, w_k) -> (B, V, h, w)."""

    def forward(
        self, attention: torch.Tensor, value: torch.Tensor, size: tuple[int, int]
    ) -> torch.Tensor:
        h, w = size
        y = attention @ with_edges(value).transpose(1, 2)  # (B, h (w + 1), V)
        return torch.unflatten(y.transpose(1, 2), 2, (h, w + 1))[..., :w]
