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

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from poan_train.networks.patches import centred

NEVER = -1e4
"""Added to the score of an edge key: exp of it is zero, and bf16 holds it."""
MARGINS = (6, 5, 3, 2)
"""Queries at either end of: pairs, their row sums, the attention, its row sums. A row sum takes
windows up to one query beyond its row, a column sum two."""


@dataclass(frozen=True, kw_only=True)
class Flat:
    """A map of pairs that lies flat, query after query: a joint shift of both is an offset."""

    values: torch.Tensor
    """(B, queries * keys)."""
    row_of_queries: int
    """Queries of one row, the one too many counted."""
    keys: int
    """Keys of one query, edge keys counted."""
    row_of_keys: int

    def shifted(self, rows: int, columns: int, first: int, queries: int) -> torch.Tensor:
        """(B, queries, keys) from query ``first`` on, both positions moved by rows and columns."""
        moved = rows * self.row_of_queries + columns  # queries
        start = (first + moved) * self.keys + rows * self.row_of_keys + columns
        part = window(self.values, start, queries * self.keys)
        return torch.unflatten(part, 1, (queries, self.keys))

    def with_values(self, values: torch.Tensor) -> "Flat":
        """The same layout of values (B, queries, keys)."""
        return replace(self, values=values.flatten(1))


def window(x: torch.Tensor, start: int, length: int) -> torch.Tensor:
    """``x[:, start : start + length]`` as a Split, which a runtime may take without a copy."""
    return torch.split(x, [start, length, x.shape[1] - start - length], dim=1)[1]


def with_edges(x: torch.Tensor, value: float = 0.0) -> torch.Tensor:
    """x (B, C, h_k, w_k) with its edge keys, flat: (B, C, (h_k + 1) (w_k + 1))."""
    return F.pad(x, (0, 1, 0, 1), value=value).flatten(2)


def inverse_patch_length(x: torch.Tensor) -> torch.Tensor:
    """1 / |3x3 patch| of x (B, E, h, w), the length at least 1e-4: (B, 1, h, w).

    |patch| = 3 sqrt(mean over the nine). (ONNX's AveragePool has no other divisor than the window;
    the exporter silently drops `divisor_override`.)
    """
    mean = F.avg_pool2d(x.square().sum(1, keepdim=True), 3, 1, 1)
    return 1 / 3 / mean.clamp_min(1e-8 / 9).sqrt()


class FlatScores(nn.Module):
    """D[softmax(10 D[Q K] / |patch|)]: (B, E, h, w), (B, E, h_k, w_k) -> (B, h (w + 1), L).

    L counts the edge keys; every row of queries has a last one too many.
    """

    def __init__(self, scale: float, cosine: bool = False) -> None:
        super().__init__()
        self.scale, self.cosine = scale, cosine

    def forward(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        if self.cosine:
            query, key = centred(query), centred(key)
        factor = with_edges(self.scale * inverse_patch_length(key))  # (B, 1, L)
        # In front of a window it keeps the runtime from summing in place, which would copy it
        # first; what it takes away are sums at edge keys.
        inside = factor.sign()
        pairs = self._pairs(query, key)
        attention = self._softmax(query, key, pairs, factor, inside)
        return self._spread(query, pairs.with_values(attention), inside)

    @staticmethod
    def _pairs(query: torch.Tensor, key: torch.Tensor) -> Flat:
        """Q K of all pairs: rows of queries end in a zero, two rows of zeros above and below."""
        (_, w), (h_k, w_k) = query.shape[-2:], key.shape[-2:]
        rows = F.pad(query, (0, 1, 2, 2)).flatten(2)
        pairs = F.pad(rows, (MARGINS[0], MARGINS[0])).transpose(1, 2) @ with_edges(key)
        return Flat(
            values=pairs.flatten(1),
            row_of_queries=w + 1,
            keys=(h_k + 1) * (w_k + 1),
            row_of_keys=w_k + 1,
        )

    def _softmax(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        pairs: Flat,
        factor: torch.Tensor,
        inside: torch.Tensor,
    ) -> torch.Tensor:
        """softmax(D[pairs] factor), one row of queries more above and below: (B, queries, L)."""
        (h, w), (h_k, w_k) = query.shape[-2:], key.shape[-2:]
        wide = w + 1
        queries = (h + 2) * wide + 2 * MARGINS[1]
        above, here, below = (pairs.shifted(i, 0, wide + 1, queries) for i in (-1, 0, 1))
        sums = pairs.with_values(inside * above + here + below)
        queries = (h + 2) * wide + 2 * MARGINS[2]
        left, here, right = (sums.shifted(0, j, 2, queries) for j in (-1, 0, 1))
        scores = factor * left + factor * here + factor * right
        if self.cosine:
            own = F.pad(inverse_patch_length(query), (0, 1, 1, 1)).flatten(2)
            scores = scores * F.pad(own, (MARGINS[2], MARGINS[2])).transpose(1, 2)
        never = torch.zeros(1, 1, h_k, w_k, dtype=key.dtype, device=key.device)
        return torch.softmax(scores + with_edges(never, NEVER), dim=-1)

    @staticmethod
    def _spread(query: torch.Tensor, attention: Flat, inside: torch.Tensor) -> torch.Tensor:
        """D[attention], where queries that were added count as zero: (B, h (w + 1), L)."""
        h, w = query.shape[-2:]
        wide = w + 1
        image = torch.ones(1, h, w, dtype=query.dtype, device=query.device)
        real = F.pad(F.pad(image, (0, 1, 1, 1)).flatten(1), (MARGINS[2], MARGINS[2]))[..., None]
        queries = h * wide + 2 * MARGINS[3]
        above, here, below = (
            real[:, first : first + queries] * attention.shifted(row, 0, wide + 1, queries)
            for row, first in ((-1, 1), (0, wide + 1), (1, 2 * wide + 1))
        )
        sums = attention.with_values(inside * above + here + below)
        left, here, right = (sums.shifted(0, j, 2, h * wide) for j in (-1, 0, 1))
        return inside * left + here + right


class FlatMix(nn.Module):
    """Values weighted by `FlatScores`: value (B, V, h_k, w_k) -> (B, V, h, w)."""

    def forward(
        self, attention: torch.Tensor, value: torch.Tensor, size: tuple[int, int]
    ) -> torch.Tensor:
        h, w = size
        y = attention @ with_edges(value).transpose(1, 2)  # (B, h (w + 1), V)
        return torch.unflatten(y.transpose(1, 2), 2, (h, w + 1))[..., :w]
