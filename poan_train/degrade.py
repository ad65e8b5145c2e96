"""From HR slices to LR: MATLAB-convention bicubic and k-space truncation.

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
"""On which grid LR of each method lies."""
TRUNCATES = ("scanner", "truncated", "kspace")
"""Methods whose LR is the centre of HR's k-space; `acquire` adds what ``scanner`` does besides."""


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
    if method in TRUNCATES:
        return fourier_resize(hr, (h // scale, w // scale), GRID[method])
    if method != "bicubic":
        raise ValueError(f"{method}: no such method; there are bicubic, {', '.join(TRUNCATES)}")
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
