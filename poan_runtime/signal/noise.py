"""How strong a scan's noise is: from the air around the body, else from the spectrum's corner.

sigma is the standard deviation of the real part of one voxel, in the scan's unit: that of the
noise in bright tissue. In air a magnitude image has a Rayleigh distribution: mean 1.25 sigma,
standard deviation 0.655 sigma. Give native slices: a zero-filled spectrum has an empty corner,
and zero-filled air is smoother than it was measured.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Slices = NDArray[Any]

AIR_K = 4.5
"""Sigma above the median of air that none of its voxels exceeds, but for one tile of 33x33 in
10,000 (`false_alarms`)."""
BLOCK = 8
SPREAD = (0.40, 0.65)
"""Standard deviation over mean of a block of air: 0.523 for Rayleigh noise, give or take what 64
correlated voxels and whole numbers make of it."""
FEWEST_BLOCKS, LEAST_SHARE = 16, 0.005
MAJORITY = 0.5
CORNER = 0.8


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Noise of a scan in its own unit."""

    sigma: float
    source: Literal["background", "spectrum", "none"]
    background_median: float
    """Median of the air; 0 where the background holds no noise, as after skull stripping."""
    background_sigma: float
    """sigma of the air, 0 likewise."""

    def times(self, unit: float) -> "Noise":
        """The noise of the slices times ``unit``."""
        return replace(
            self,
            sigma=self.sigma * unit,
            background_median=self.background_median * unit,
            background_sigma=self.background_sigma * unit,
        )


def noise_level(slices: Slices) -> Noise:
    """Noise of slices (n, h, w): a few native ones, such as `sampled` picks, are enough.

    The background counts where at least 16 blocks of 8x8 voxels, and 0.5 % of all, look like
    air (`background`). Elsewhere it is the spectrum's corner (`corner_sigma`), which takes in
    fine structure as well: an upper bound, unless the scanner or its filter left the corner out.
    """
    clean = np.nan_to_num(np.asarray(slices, np.float32), posinf=0.0, neginf=0.0)
    air = background(clean)
    if air is not None:
        sigma, median = air
        return Noise(
            sigma=sigma, source="background", background_median=median, background_sigma=sigma
        )
    sigma = corner_sigma(clean)
    source: Literal["spectrum", "none"] = "spectrum" if sigma > 0 else "none"
    return Noise(sigma=sigma, source=source, background_median=0.0, background_sigma=0.0)


def background(slices: Slices) -> tuple[float, float] | None:
    """(sigma, median) of the air of slices (n, h, w), or None where none is seen.

    A block is noise if its standard deviation is 0.40 to 0.65 of its mean and zeros are rare in
    it, as Rayleigh noise in whole numbers makes them. Air is the darkest noise: sigma is the
    median of sqrt(mean square / 2) over the noise blocks within a factor of 1.5 of their tenth
    percentile. If these are not most of the blocks below 2 sigma, they are edges of tissue, or
    the air was masked, filtered or added up from many coils.
    """
    blocks = _blocks(slices)
    if not len(blocks):
        return None
    mean, spread = blocks.mean(axis=1), blocks.std(axis=1)
    low, high = SPREAD
    noise = (spread > low * mean) & (spread < high * mean) & ((blocks <= 0).mean(axis=1) < 0.2)
    if noise.sum() < max(FEWEST_BLOCKS, LEAST_SHARE * len(blocks)):
        return None
    candidates = blocks[noise]
    sigmas = np.sqrt(np.square(candidates, dtype=np.float64).mean(axis=1) / 2)
    air = np.abs(np.log(sigmas / np.percentile(sigmas, 10))) < np.log(1.5)
    sigma = float(np.median(sigmas[air]))
    dark = (mean > 0) & (mean < 2 * sigma)
    if air.sum() < MAJORITY * dark.sum():
        return None
    return sigma, float(np.median(candidates[air]))


def _blocks(slices: Slices) -> NDArray[np.float32]:
    """Blocks (count, 64) of slices (n, h, w); rows and columns that fill none are left out."""
    n, h, w = slices.shape
    rows, columns = h // BLOCK, w // BLOCK
    x = slices[:, : rows * BLOCK, : columns * BLOCK].reshape(n, rows, BLOCK, columns, BLOCK)
    return np.asarray(x.swapaxes(2, 3).reshape(-1, BLOCK * BLOCK))  # (n rows columns, 64)


def corner_sigma(slices: Slices) -> float:
    """sigma from the power of slices (n, h, w) above 0.8 of Nyquist along both axes at once.

    Noise there has an exponential distribution of power, so its mean is the median / ln 2. A
    Hann window keeps the edges of the image out; voxels that are exactly zero carry no noise and
    do not count in the window's energy. The median over the slices that hold any signal.
    """
    _, h, w = slices.shape
    window = np.outer(np.hanning(h + 2)[1:-1], np.hanning(w + 2)[1:-1]).astype(np.float32)
    corner = np.ix_(np.abs(np.fft.fftfreq(h)) * 2 > CORNER, np.fft.rfftfreq(w) * 2 > CORNER)
    if not all(len(bins) for bins in map(np.ravel, corner)):
        return 0.0  # slices of a few voxels have no corner
    sigmas = []
    for image in slices:
        energy = float(np.sum(np.square(window[image != 0], dtype=np.float64)))
        if energy > 0:
            power = np.abs(np.fft.rfft2(image * window)[corner]) ** 2
            sigmas.append(np.sqrt(np.median(power) / np.log(2) / energy))
    return float(np.median(sigmas)) if sigmas else 0.0


def air_floor(noise: Noise, k: float) -> float:
    """Value that air rarely exceeds: background median + k sigma; 0 where the air holds no noise.

    Rayleigh noise of one voxel exceeds it with probability exp(-(1.177 + k)^2 / 2).
    """
    return noise.background_median + k * noise.background_sigma


def false_alarms(k: float, voxels: int) -> float:
    """Chance that Rayleigh air has one of ``voxels`` independent voxels above the floor.

    >>> round(false_alarms(4.5, 32 * 32), 6)
    0.000103
    """
    one = np.exp(-((np.sqrt(2 * np.log(2)) + k) ** 2) / 2)
    return float(-np.expm1(voxels * np.log1p(-one)))
