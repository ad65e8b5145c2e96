"""Slices brought to another matrix by cropping or zero-filling their spectrum.

Both are linear, and are done to one axis after the other. The grid is ``centre``: the field of
view stays, and sample k of m lies at index ``(k + 1/2) n / m - 1/2`` of the n samples that it came
from. That is the spectrum cut at m / 2 cycles per field of view, a phase ramp, and the inverse
transform at m points, times m / n.

At m / 2 itself, where m is even, filling puts half of the coefficient on each side of the
spectrum and cropping adds the two sides. So an image filled and cropped back is itself, for odd
and even matrices alike, and an image without power at or above m / 2 is the same picture after
cropping, sampled more coarsely.

The operators keep small negative values, such as the ringing beside a bright edge that a scanner
would have folded up by taking the magnitude: without them nothing could be undone.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poan_runtime.geometry import Affine, in_plane_axes

Slices = NDArray[Any]


@lru_cache(maxsize=64)
def _ramp(n: int, m: int) -> NDArray[np.complex64]:
    """What each line of the spectrum is multiplied by, from zero up to min(n, m) / 2 cycles."""
    lines = min(n, m) // 2
    ramp = np.exp(1j * np.pi * np.arange(lines + 1) * (1 / m - 1 / n)) * m / n
    if min(n, m) % 2 == 0:
        ramp[lines] *= 2 if m < n else 0.5
    return np.asarray(ramp, np.complex64)


def _line(x: Slices, m: int, axis: int) -> Slices:
    """A slice with ``m`` samples along one axis."""
    n = x.shape[axis]
    if n == m:
        return x
    ramp = _ramp(n, m)
    spectrum = np.fft.rfft(x, axis=axis)
    kept = spectrum[: len(ramp)] * ramp[:, None] if axis == 0 else spectrum[:, : len(ramp)] * ramp
    return np.fft.irfft(kept, m, axis=axis)


def resample(slices: Slices, matrix: tuple[int, int]) -> NDArray[np.float32]:
    """Slices (..., h, w) on ``matrix`` (rows, columns): float32 (..., rows, columns).

    Raises ValueError for an axis without samples. By FFTs, slice by slice: no more than one
    slice's spectrum is in memory, and no library of matrix products takes the other cores.
    """
    size = slices.shape[-2:]
    if min(*size, *matrix) < 1:
        raise ValueError(f"need at least one sample on both sides, got {size} and {matrix}")
    out = np.empty((*slices.shape[:-2], *matrix), np.float32)
    # the axis that shrinks more goes first: fewer lines to transform
    axes = sorted((0, 1), key=lambda axis: matrix[axis] / size[axis])
    for place in np.ndindex(out.shape[:-2]):
        x = np.asarray(slices[place], np.float32)
        for axis in axes:
            x = _line(x, matrix[axis], axis)
        out[place] = x
    return out


def to_native(slices: Slices, native: tuple[int, int]) -> NDArray[np.float32]:
    """Slices (..., h, w) with the spectrum cropped to ``native`` (rows, columns).

    Raises ValueError where that is larger than the slices are.
    """
    if native[0] > slices.shape[-2] or native[1] > slices.shape[-1]:
        raise ValueError(f"cannot crop the spectrum of {slices.shape[-2:]} to {native}")
    return resample(slices, native)


def zero_fill(slices: Slices, matrix: tuple[int, int]) -> NDArray[np.float32]:
    """Slices (..., h, w) with zeros about the spectrum, up to ``matrix``; undone by `to_native`.

    Raises ValueError where that is smaller than the slices are.
    """
    if matrix[0] < slices.shape[-2] or matrix[1] < slices.shape[-1]:
        raise ValueError(f"cannot fill the spectrum of {slices.shape[-2:]} up to {matrix}")
    return resample(slices, matrix)


def not_below_zero(slices: Slices, like: Slices) -> Slices:
    """Slices without the negative values of ringing, if ``like`` had none; else as they are."""
    return np.maximum(slices, 0) if like.size and like.min() >= 0 else slices


def resampled_affine(
    affine: Affine, before: Sequence[int], after: Sequence[int], axis: int
) -> Affine:
    """Affine of a volume whose in-plane matrix went from ``before`` to ``after``.

    ``axis`` is the slice axis; ``before`` and ``after`` are (rows, columns), the first and the
    second of the two other axes. The outer faces of the field of view stay where they are.

    >>> resampled_affine(np.eye(4), (6, 8), (4, 8), axis=2)[0].tolist()
    [1.5, 0.0, 0.0, 0.25]
    """
    step = np.eye(4)
    for in_plane, n, m in zip(in_plane_axes(axis), before, after, strict=True):
        step[in_plane, in_plane] = n / m
        step[in_plane, 3] = (n / m - 1) / 2
    return np.asarray(affine, np.float64) @ step
