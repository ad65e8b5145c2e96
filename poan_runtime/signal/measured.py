"""The measured band: what of the scan the network changed, and that band put back.

``down`` keeps of SR the part of k-space that the scanner measured, sampled as LR is; ``up``
zero-fills LR. Both lie on the ``centre`` grid (see `kspace`) and down(up(LR)) is LR.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poan_runtime.signal.kspace import resample

Slices = NDArray[Any]


def down(sr: Slices, scale: int) -> NDArray[np.float32]:
    """SR slices (..., s h, s w) with the spectrum cropped to LR's: (..., h, w) float32."""
    h, w = sr.shape[-2:]
    if h % scale or w % scale:
        raise ValueError(f"SR of {h}x{w} is no multiple of x{scale}")
    return resample(sr, (h // scale, w // scale))


def up(lr: Slices, scale: int) -> NDArray[np.float32]:
    """LR slices (..., h, w) zero-filled in k-space to (..., s h, s w) float32: sinc."""
    return resample(lr, (scale * lr.shape[-2], scale * lr.shape[-1]))


def difference(lr: Slices, sr: Slices, scale: int) -> NDArray[np.float32]:
    """LR - down(SR), in LR's unit: where, and by how much, SR departs from what was measured."""
    return np.asarray(lr, np.float32) - down(sr, scale)


def put_back(sr: Slices, changed: Slices, scale: int, share: float = 1.0) -> NDArray[np.float32]:
    """SR with a share of LR's band in place of its own: SR + share up(``changed``).

    ``changed`` is the `difference` of the two. With all of it, `down` of the result is LR to
    float32 rounding; what SR holds above LR's band stays.
    """
    return np.asarray(sr, np.float32) + np.float32(share) * up(changed, scale)


@dataclass
class Change:
    """||LR - down(SR)|| / ||LR|| over a scan, added up slab by slab in float64."""

    squared_difference: float = 0.0
    squared_lr: float = 0.0
    count: int = 0

    def add(self, lr: Slices, changed: Slices) -> None:
        """Take in a slab's LR and its `difference`, or any map of that shape."""
        self.squared_difference += _squares(changed)
        self.squared_lr += _squares(lr)
        self.count += lr.size

    @property
    def relative(self) -> float:
        """Share of LR that was changed; 0 for an all-zero scan."""
        return float(np.sqrt(self.squared_difference / self.squared_lr)) if self.squared_lr else 0.0

    @property
    def rms(self) -> float:
        """Root mean square of the difference in LR's unit, to be read beside the noise level."""
        return float(np.sqrt(self.squared_difference / self.count)) if self.count else 0.0


def _squares(x: Slices) -> float:
    return float(np.sum(np.square(x, dtype=np.float64)))


def change_of(slabs: Iterable[tuple[Slices, Slices]], scale: int) -> Change:
    """`Change` over (LR, SR) slabs."""
    total = Change()
    for lr, sr in slabs:
        total.add(lr, difference(lr, sr, scale))
    return total
