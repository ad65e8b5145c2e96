"""Voxels that the network puts below zero where the scan has none become 0."""

import dataclasses

import numpy as np

from poan_runtime.images.source import Slab


@dataclasses.dataclass(kw_only=True)
class BelowZero:
    """Voxels that the network put below zero in volumes that have none, and that became 0."""

    count: int = 0
    lowest: float = 0.0

    def clamp(self, sr: Slab) -> Slab:
        """The slab without them."""
        below = sr < 0
        count = int(np.count_nonzero(below))
        if not count:
            return sr
        self.count += count
        self.lowest = min(self.lowest, float(sr.min()))
        sr[below] = 0
        return sr
