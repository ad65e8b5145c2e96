"""Up-sampling without a network: bicubic, and non-local means after Manjón et al. 2010.

Source: "Non-local MRI upsampling", Medical Image Analysis 14 (2010) 784-792. There: interpolate,
then alternate between a non-local means filter, whose strength falls step by step, and a
correction after which the LR image is again what the HR estimate gives. The filter is
scikit-image's. [open] marks what is ours: 2D slices (theirs are volumes), bicubic interpolation
to start from (theirs is a spline), the patch distance (normalised by scikit-image), the schedule.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from skimage.restoration import denoise_nl_means

from poan_train.degrade import GRID, Array, Degradation, degrade
from poan_train.evaluate import bicubic


@dataclass(frozen=True, kw_only=True)
class NLMConfig:
    """Non-local means up-sampling."""

    patch: int = 3
    """Side of a patch in HR voxels, odd."""
    distance: int = 3
    """Search window: so many HR voxels to each side."""
    start: float = 0.15
    """[open] First filter strength, as a share of the slice's standard deviation; chosen on two
    training volumes, x2 and x4, among 0.1, 0.15, 0.2 and 0.5."""
    stop: float = 0.03
    """[open] The strength is halved until it falls below this share."""
    tolerance: float = 0.002
    """[open] It is halved when a step changes less than this share of the standard deviation."""
    steps: int = 4
    """[open] Most steps of one strength."""
    consistency: Literal["degradation", "mean"] = "degradation"
    """What ties the estimate to the LR image: the degradation that made it, or, as published, LR
    voxels that are means of their HR voxels (right for neither of our degradations)."""


def nlm(lr: Array, scale: int, method: Degradation, config: NLMConfig | None = None) -> Array:
    """SR (S, s h, s w) float32 of slices (S, h, w), each on its own."""
    config = config or NLMConfig()
    start = bicubic(lr, scale, GRID[method])
    slices = [_nlm_slice(x, y, scale, method, config) for x, y in zip(lr, start, strict=True)]
    return np.stack(slices).astype(np.float32)


def _nlm_slice(
    lr: Array, estimate: Array, scale: int, method: Degradation, config: NLMConfig
) -> Array:
    spread = float(lr.std())
    x = make_consistent(estimate, lr, scale, method, config.consistency)
    strength = config.start
    while spread > 0 and strength >= config.stop:
        for _ in range(config.steps):
            before = x
            x = denoise_nl_means(
                x.astype(np.float32),
                patch_size=config.patch,
                patch_distance=config.distance,
                h=strength * spread,
                preserve_range=True,
            )
            x = make_consistent(x, lr, scale, method, config.consistency)
            if float(np.abs(x - before).mean()) < config.tolerance * spread:
                break
        strength /= 2
    return x


def make_consistent(
    x: Array, lr: Array, scale: int, method: Degradation, consistency: str = "degradation"
) -> Array:
    """x (s h, s w) corrected by what its own LR image lacks of ``lr`` (h, w).

    With ``mean`` the block means of the result are ``lr`` exactly, as published. With
    ``degradation`` the rest is spread by interpolation: a step of back-projection, which leaves a
    smaller rest.
    """
    if consistency == "mean":
        h, w = lr.shape
        means = x.reshape(h, scale, w, scale).mean(axis=(1, 3))
        return np.asarray(x + np.kron(lr - means, np.ones((scale, scale))))
    rest = lr - degrade(x, scale, method)
    return np.asarray(x + bicubic(rest[None], scale, GRID[method])[0])


def _bicubic(lr: Array, scale: int, method: Degradation) -> Array:
    return bicubic(lr, scale, GRID[method])


CLASSICAL: Mapping[str, Callable[[Array, int, Degradation], Array]] = {
    "bicubic": _bicubic,
    "nlm": nlm,
}
"""Methods by name: LR slices, scale and degradation to SR slices."""
