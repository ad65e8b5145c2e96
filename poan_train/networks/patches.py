"""3x3 patches of a map, at stride 1 or 3: taken, compared and put together again."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from poan_train.networks.config import PATCH


def border(size: int, stride: int) -> int:
    """Zeros on either side of a map, so that patches at ``stride`` cover it alike from both ends.

    One at stride 1: a patch is centred on every position. ``size`` mod 3 at stride 3: a size plus
    twice its remainder is a multiple of 3, and a flipped map has the flipped patches.

    >>> [n + 2 * border(n, 3) for n in (9, 10, 11)]
    [9, 12, 15]
    """
    return 1 if stride == 1 else size % PATCH


def to_patches(x: torch.Tensor, stride: int) -> torch.Tensor:
    """3x3 patches of x (B, C, h, w) at ``stride``: (B, P, 9 C), position after position."""
    b, c, h, w = x.shape
    if stride == 1:
        return (
            F.unfold(x, PATCH, padding=1).view(b, c, PATCH**2, h * w).permute(0, 3, 2, 1).flatten(2)
        )
    rows, columns = border(h, stride), border(w, stride)
    x = F.pad(x, (columns, columns, rows, rows)) if rows or columns else x
    x = torch.unflatten(torch.unflatten(x, 3, (-1, PATCH)), 2, (-1, PATCH))
    # (B, C, rows, 3, columns, 3)
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def from_patches(patches: torch.Tensor, size: tuple[int, int], stride: int) -> torch.Tensor:
    """Overlap-add of patches (B, P, 9 C) at ``stride``: (B, C, h, w) of ``size``."""
    x = torch.unflatten(patches, 2, (PATCH, PATCH, -1))  # (B, P, 3, 3, C)
    if stride == 1:
        return F.fold(x.permute(0, 4, 2, 3, 1).flatten(1, 3), size, PATCH, padding=1)
    (h, w), (rows, columns) = size, (border(n, stride) for n in size)
    x = torch.unflatten(x, 1, (-1, (w + 2 * columns) // PATCH))  # (B, rows, columns, 3, 3, C)
    x = x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)  # (B, C, h + ..., w + ...)
    return x[:, :, rows : rows + h, columns : columns + w] if rows or columns else x


def centred(x: torch.Tensor) -> torch.Tensor:
    """x (B, C, h, w) less each channel's mean over the map."""
    return x - x.mean(dim=(2, 3), keepdim=True)


def inverse_length(vectors: torch.Tensor) -> torch.Tensor:
    """1 / length of vectors (B, P, E), which counts as at least 1e-4: (B, P, 1)."""
    return vectors.square().sum(dim=2, keepdim=True).clamp_min(1e-8).rsqrt()


@dataclass(frozen=True, kw_only=True)
class Patches:
    """How patches are taken and compared: the fields of POANConfig of the same names."""

    query_stride: int = 1
    key_stride: int = 1
    fold: float = 4.0
    cosine: bool = False

    def weights(
        self, query: torch.Tensor, key: torch.Tensor, scale: float | torch.Tensor
    ) -> torch.Tensor:
        """Attention (B, queries, keys) of query (B, E, h, w) to key (B, E, h_k, w_k)."""
        q = to_patches(self.prepared(query), self.query_stride)
        k = to_patches(self.prepared(key), self.key_stride)
        scores = q @ k.transpose(1, 2) * (scale * inverse_length(k)).transpose(1, 2)
        return torch.softmax(scores * inverse_length(q) if self.cosine else scores, dim=-1)

    def prepared(self, x: torch.Tensor) -> torch.Tensor:
        return centred(x) if self.cosine else x
