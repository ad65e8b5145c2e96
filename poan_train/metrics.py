"""PSNR and SSIM with their peak conventions named."""

from typing import Literal, TypeAlias

import numpy as np
from scipy.ndimage import gaussian_filter

from poan_runtime.intensity import decibels
from poan_train.degrade import Array

Peak: TypeAlias = Literal["volume", "slice"]


def psnr(reference: Array, estimate: Array, peak: Peak = "volume") -> float:
    """PSNR in dB of slices (S, H, W): mean over slices of 10 log10(peak^2 / MSE).

    The peak is the maximum of the whole reference (``volume``, the nearest public convention to
    the papers') or of each slice (``slice``). Slices without signal or without error are left
    out; infinite if all are without error.

    >>> round(psnr(np.ones((1, 4, 4)), np.full((1, 4, 4), 0.9)), 6)
    20.0
    """
    mse = ((reference.astype(np.float64) - estimate) ** 2).mean(axis=(1, 2))
    top = _peaks(reference, peak)
    use = (mse > 0) & (top > 0)
    if not use.any():
        return float("inf")
    return float(decibels(top[use], mse[use]).mean())


def psnr_whole(reference: Array, estimate: Array) -> float:
    """PSNR in dB of a whole volume (S, H, W): one mean squared error, the volume's maximum.

    Infinite without an error, NaN without signal.
    """
    mse = float(((reference.astype(np.float64) - estimate) ** 2).mean())
    top = float(reference.max())
    if top <= 0:
        return float("nan")
    return float(10 * np.log10(top**2 / mse)) if mse > 0 else float("inf")


def ssim(reference: Array, estimate: Array, peak: Peak = "volume") -> float:
    """SSIM of slices (S, H, W), mean over slices with signal (Wang et al., IEEE TIP 13, 2004).

    Gaussian window of sigma 1.5 cut at 11x11, K1 = 0.01, K2 = 0.03, population covariance, as in
    the original; borders of five pixels are left out. Peaks as in :func:`psnr`. NaN if no slice
    has signal.
    """
    values = []
    for a, b, top in zip(reference, estimate, _peaks(reference, peak), strict=True):
        if top > 0:
            values.append(_ssim_slice(a.astype(np.float64), b.astype(np.float64), float(top)))
    return float(np.mean(values)) if values else float("nan")


def psnr_within(reference: Array, estimate: Array, mask: Array) -> float:
    """PSNR in dB of the voxels where ``mask`` is True, of whole volumes (S, H, W).

    One mean squared error over all of them; the peak is the reference's maximum within the mask.
    Infinite without an error, NaN if the mask is empty.
    """
    if not mask.any():
        return float("nan")
    truth = reference[mask].astype(np.float64)
    mse = float(((truth - estimate[mask]) ** 2).mean())
    return float(decibels(truth.max(), mse)) if mse > 0 else float("inf")


def ssim_within(reference: Array, estimate: Array, mask: Array) -> float:
    """Mean of the SSIM map over the voxels where ``mask`` is True, borders of five left out.

    The peak is the reference's maximum within the mask; the rest as in :func:`ssim`. NaN if no
    voxel remains.
    """
    if not mask.any():
        return float("nan")
    peak = float(reference[mask].max())
    inner = (slice(5, -5), slice(5, -5))
    total, count = 0.0, 0
    for a, b, inside in zip(reference, estimate, mask, strict=True):
        values = _ssim_map(a.astype(np.float64), b.astype(np.float64), peak)[inner][inside[inner]]
        total, count = total + float(values.sum()), count + values.size
    return total / count if count else float("nan")


def _ssim_slice(a: Array, b: Array, peak: float) -> float:
    return float(_ssim_map(a, b, peak)[5:-5, 5:-5].mean())


def _ssim_map(a: Array, b: Array, peak: float) -> Array:
    def blur(x: Array) -> Array:
        return np.asarray(gaussian_filter(x, 1.5, truncate=3.5))

    mean_a, mean_b = blur(a), blur(b)
    var_a = blur(a * a) - mean_a**2
    var_b = blur(b * b) - mean_b**2
    cov = blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    ratio = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
    ratio /= (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    return np.asarray(ratio)


def _peaks(reference: Array, peak: Peak) -> Array:
    tops = reference.max(axis=(1, 2)).astype(np.float64)
    return np.full_like(tops, tops.max()) if peak == "volume" else tops
