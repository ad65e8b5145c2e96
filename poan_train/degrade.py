"""From HR slices to LR: MATLAB-convention bicubic and k-space truncation; and true resolution.

All are rules on the last two axes of an array (..., H, W). Their grids differ (the half-voxel
rule): LR sample k lies at HR index ``s k + (s - 1) / 2`` for bicubic and ``truncated``
(``centre``), and at ``s k`` for ``kspace``. What a scanner does besides is in
:mod:`poan_train.acquire`.
"""

from typing import Any, Literal, TypeAlias

import numpy as np

from poan_train.resample import Grid, cubic_matrix

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Degradation: TypeAlias = Literal["scanner", "bicubic", "truncated", "kspace"]
GRID: dict[str, Grid] = {
    "scanner": "centre",
    "bicubic": "centre",
    "truncated": "centre",
    "kspace": "kspace",
}


def crop_to_multiple(hr: Array, scale: int) -> Array:
    """hr (..., H, W) without the last rows and columns that do not fill an LR voxel."""
    h, w = hr.shape[-2] // scale * scale, hr.shape[-1] // scale * scale
    if not h or not w:
        raise ValueError(f"a slice of {hr.shape[-2]}x{hr.shape[-1]} is smaller than x{scale}")
    return np.asarray(hr[..., :h, :w])


def degrade(hr: Array, scale: int, method: Degradation) -> Array:
    """LR (..., H / s, W / s) float32 of hr (..., H, W), whose sides are multiples of ``scale``.

    For ``scanner`` its noise-free, unfiltered part, which is ``truncated``: signed, linear in hr.
    """
    h, w = hr.shape[-2:]
    if h % scale or w % scale:
        raise ValueError(f"{h}x{w} is no multiple of {scale}; crop_to_multiple first")
    if method != "bicubic":
        return fourier_resize(hr, (h // scale, w // scale), GRID[method])
    rows = cubic_matrix(h, h // scale, antialias=True, edge="symmetric").astype(np.float32)
    columns = cubic_matrix(w, w // scale, antialias=True, edge="symmetric").astype(np.float32)
    return np.asarray(rows @ hr.astype(np.float32) @ columns.T)


def fourier_resize(x: Array, shape: tuple[int, int], grid: Grid = "kspace") -> Array:
    """Crop the spectrum of x (..., H, W) to ``shape``: what a scan of fewer phase steps keeps.

    The amplitude is corrected for the number of samples, so a constant stays itself. Sample k of
    the result lies at index ``k H / h``, or on the ``centre`` grid, by an exact phase ramp, at
    ``(k + 1/2) H / h - 1/2``. An even size keeps half of each of its two Nyquist coefficients,
    which makes the result of a real image real. float32 (..., h, w).

    >>> fourier_resize(np.ones((8, 8)), (4, 6)).round(6).tolist()[0]
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    for axis, size in zip((-2, -1), shape, strict=True):
        x = _fourier_resize_axis(np.moveaxis(x, axis, -1), size, grid)
        x = np.moveaxis(x, -1, axis)
    return np.asarray(x, np.float32)


def _fourier_resize_axis(x: Array, size: int, grid: Grid) -> Array:
    n = x.shape[-1]
    if not 0 < size <= n:
        raise ValueError(f"can only crop the spectrum: {n} samples to {size}")
    if size == n:
        return np.asarray(x)
    spectrum = np.fft.rfft(x, axis=-1)[..., : size // 2 + 1]
    if grid == "centre":
        shift = (n / size - 1) / 2
        spectrum = spectrum * np.exp(2j * np.pi * np.arange(size // 2 + 1) * shift / n)
    # irfft takes the real part of an even size's Nyquist coefficient: half of it from each side
    return np.asarray(np.fft.irfft(spectrum, n=size, axis=-1) * (size / n))


def sinc(lr: Array, scale: int, grid: Grid = "centre") -> Array:
    """SR (..., s h, s w) float32 of lr (..., h, w) by zero-filling its spectrum.

    The inverse of :func:`fourier_resize` on what it keeps: LR sample k lies at HR index
    ``s k + (s - 1) / 2`` on the ``centre`` grid, at ``s k`` on the ``kspace`` grid.

    >>> sinc(np.ones((4, 5)), 2).round(6).tolist()[0]
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    for axis in (-2, -1):
        lr = np.moveaxis(_sinc_axis(np.moveaxis(lr, axis, -1), scale, grid), -1, axis)
    return np.asarray(lr, np.float32)


def _sinc_axis(x: Array, scale: int, grid: Grid) -> Array:
    n = x.shape[-1]
    spectrum = np.fft.rfft(x, axis=-1)
    if grid == "centre":
        shift = (scale - 1) / 2
        spectrum = spectrum * np.exp(-2j * np.pi * np.arange(n // 2 + 1) * shift / (scale * n))
    if n % 2 == 0 and scale > 1:  # half of the Nyquist coefficient goes to each side
        spectrum[..., -1] /= 2
    return np.asarray(np.fft.irfft(spectrum, n=scale * n, axis=-1) * scale)


def zero_fill_cutoff(slices: Array, axis: int) -> float:
    """Where the spectrum of slices (S, H, W) along ``axis`` (1 or 2) falls off a cliff.

    Returned as a fraction of Nyquist; 1.0 where the spectrum is full. A scanner that zero-fills
    its k-space leaves next to nothing above the measured part, apart from what taking the
    magnitude puts there. The cliff is the largest fall of the mean log power between two bands,
    each 0.1 of Nyquist wide, on both sides of a frequency between 0.4 and 0.86; it counts from a
    factor of 5, and not at the ends, where it belongs to a receiver's filter.
    """
    n = slices.shape[axis]
    if n < 32 or not slices.any():
        return 1.0
    other = tuple(i for i in range(3) if i != axis)
    window = np.expand_dims(np.hanning(n), other)
    power = (np.abs(np.fft.rfft(slices * window, axis=axis)) ** 2).mean(axis=other)
    log_power = np.log10(power / power.max() + 1e-12)
    frequency = np.linspace(0, 1, len(log_power))
    candidates = np.arange(0.4, 0.86, 0.005)
    falls = []
    for f in candidates:
        below = log_power[(frequency >= f - 0.12) & (frequency < f - 0.02)].mean()
        above = log_power[(frequency > f + 0.02) & (frequency <= f + 0.12)].mean()
        falls.append(below - above)
    best = int(np.argmax(falls))
    if falls[best] < np.log10(5) or best in (0, len(falls) - 1):
        return 1.0
    return round(float(candidates[best]), 3)


def to_true_resolution(slices: Array) -> tuple[Array, tuple[float, float]]:
    """Slices (S, H, W) at the resolution that was measured, and the cutoffs of rows and columns.

    Each in-plane axis is resampled to its own voxel size / cutoff: learning to reproduce a
    scanner's interpolation is worthless. The spectrum is cropped, which keeps every measured
    coefficient and, on the ``centre`` grid, both ends of the field of view; the small negative
    values this leaves are set to zero where the input had none.
    """
    cutoffs = (zero_fill_cutoff(slices, 1), zero_fill_cutoff(slices, 2))
    if cutoffs == (1.0, 1.0):
        return slices.astype(np.float32), cutoffs
    h, w = (max(1, round(n * c)) for n, c in zip(slices.shape[1:], cutoffs, strict=True))
    out = fourier_resize(slices, (h, w), "centre")
    return (np.asarray(np.maximum(out, 0)) if slices.min() >= 0 else out), cutoffs
