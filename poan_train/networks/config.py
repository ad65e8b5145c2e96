"""What a network is, as data: frozen, saved with its checkpoint and in the manifest."""

from dataclasses import dataclass
from typing import Literal

SCALES = (2, 3, 4)


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
    """[open] Factor on the patch scores, as published for pyramid attention."""
    # covariance pooling
    channel: Literal["ncab", "cab", "none"] = "ncab"
    """``cab`` is the first-order, channel-reducing attention of Fig. 4 (arXiv:1807.02758)."""
    alpha: float = 0.5
    """[open] Power of the covariance, as in SAN."""
    eps: float = 1e-3
    """[open] Sigma + eps (tr Sigma / C) I: x_p' is nearly rank-deficient. A float32 covariance is
    exact to about 2e-7 of its largest eigenvalue, so a root in float32 is exact to 1e-3 on every
    tile only if the smallest is not far below; 1e-5 left 2e-3 on a tile of background."""
    floor: float = 1e-10
    """[open] Added to the diagonal too, so that a constant tile has a root."""
    gate: Literal["softmax", "sigmoid"] = "softmax"
    # ours
    zero_start: bool = False
    """The last 1x1 of POAB starts at zero, so that the block starts as the identity."""
    image_skip: Literal["none", "bicubic"] = "none"
    """Add the bicubic up-sampled input to the output: the network learns what bicubic misses."""
    grid: Literal["centre", "kspace"] = "centre"
    """Grid of the LR image, for ``image_skip``."""

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise ValueError(f"scale must be one of {SCALES}, got {self.scale}")
        if not 0 <= self.poab_after <= self.blocks:
            raise ValueError(
                f"need 0 <= poab_after <= blocks, got {self.poab_after}, {self.blocks}"
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
