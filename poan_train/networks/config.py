"""What a network is, as data: frozen, saved with its checkpoint and in the manifest."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

SCALES = (2, 3, 4)
PATCH = 3
"""Side of the patches that the pyramid attention compares."""
DENSE: Mapping[str, Any] = {
    "query_stride": 1,
    "key_stride": 1,
    "fold": 4.0,
    "similarity": "dot",
    "point_stride": 1,
    "z_norm": "none",
    "gate_unit": "sum",
    "more_poab_after": (),
}
"""POAN as it was before these fields: what a checkpoint that does not name one of them means."""


@dataclass(frozen=True, kw_only=True)
class POANConfig:
    """POAN. The defaults are the paper's; a field marked [open] is our reading of a gap in it."""

    scale: int
    channels: int = 64
    blocks: int = 40
    """Residual blocks, POAB not counted."""
    poab_after: int = 20
    """POAB follows this block; 0 puts it first."""
    residual_scale: float = 1.0
    # dual self-similarity
    point: bool = True
    pyramid: tuple[float, ...] = (0.8, 0.6, 0.4)
    patch_at_full_scale: bool = True
    """[open] Table 2's row H has a single-scale patch branch; a pyramid level at 1.0 here."""
    embedding: int = 32
    """[open] Channels of queries and keys: half of ``channels``."""
    point_value: Literal["embedded", "full"] = "embedded"
    """[open] Width of the point branch's values."""
    softmax_scale: float = 10.0
    """[open] Factor on the patch scores, as published for pyramid attention. With ``cosine``
    similarity each branch and level learns its own, from here on."""
    query_stride: int = PATCH
    """[open] Step between query patches, 1 or 3. Eq. 3 puts patches at (ki, kj) and calls the k x k
    patch "the minimum search unit": 3. The public code of the pyramid attention takes 1."""
    key_stride: int = PATCH
    """[open] Step between key patches, 1 or 3; with 3 a level's size is a multiple of 3."""
    fold: float = 1.0
    """[open] Divides the overlap-added value patches. At stride 3 every position lies in one patch;
    the dense public code divides by 4."""
    similarity: Literal["cosine", "dot"] = "cosine"
    """[open] ``cosine``: queries and keys are centred over the tile and brought to length one, so
    that scores have no unit. ``dot``: keys alone are normalised, as published for patches."""
    point_stride: int = PATCH
    """[open] The point branch's keys and values come from features resized by 1 / this."""
    # covariance pooling
    channel: Literal["ncab", "cab", "context", "none"] = "ncab"
    """``cab`` is the first-order, channel-reducing attention of Fig. 4 (arXiv:1807.02758),
    ``context`` adds a vector made of the tile's channel means (ours, to compare with)."""
    alpha: float = 0.5
    """[open] Power of the covariance, as in SAN."""
    eps: float = 1e-3
    """[open] Sigma + eps (tr Sigma / C) I: x_p' is nearly rank-deficient. A float32 covariance is
    exact to about 2e-7 of its largest eigenvalue, so a root in float32 is exact to 1e-3 on every
    tile only if the smallest is not far below; 1e-5 left 2e-3 on a tile of background."""
    floor: float = 1e-10
    """[open] Added to the diagonal too, so that a constant tile has a root."""
    z_norm: Literal["trace", "none"] = "trace"
    """[open] ``trace``: z C / (tr Sigma / C)^alpha, which has no unit and an rms of 1 for channels
    that do not correlate. The paper calls z "the normalized vector" and does not say how."""
    gate: Literal["softmax", "sigmoid"] = "softmax"
    gate_unit: Literal["mean", "sum"] = "mean"
    """[open] The softmax gate's weights average to 1, or sum to 1 as printed: then each is about
    1 / C, and the block hands on 1 + 1 / C of its input whatever z is."""
    # ours
    more_poab_after: tuple[int, ...] = ()
    """More blocks of the same kind, each with weights of its own, after these residual blocks."""
    zero_start: bool = False
    """The last 1x1 of POAB starts at zero, so that the block starts as the identity."""
    image_skip: Literal["none", "bicubic"] = "none"
    """Add the bicubic up-sampled input to the output: the network learns what bicubic misses."""
    grid: Literal["centre", "kspace"] = "centre"
    """Grid of the LR image, for ``image_skip``."""

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise ValueError(f"scale must be one of {SCALES}, got {self.scale}")
        for after in (self.poab_after, *self.more_poab_after):
            if not 0 <= after <= self.blocks:
                raise ValueError(f"need 0 <= poab_after <= blocks, got {after}, {self.blocks}")
        for name in ("query_stride", "key_stride"):
            if getattr(self, name) not in (1, PATCH):
                raise ValueError(f"{name} must be 1 or {PATCH}, got {getattr(self, name)}")
        if self.point_stride < 1 or self.fold <= 0:
            raise ValueError(
                f"need point_stride >= 1 and fold > 0, got {self.point_stride}, {self.fold}"
            )

    @property
    def levels(self) -> tuple[float, ...]:
        """Scales of the patch attention, full resolution first."""
        return ((1.0,) if self.patch_at_full_scale else ()) + self.pyramid

    @property
    def has_spatial(self) -> bool:
        return self.point or bool(self.levels)

    @property
    def has_poab(self) -> bool:
        return self.has_spatial or self.channel != "none"
