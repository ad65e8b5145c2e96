"""Slices brought to another matrix by cropping or zero-filling their spectrum.

Both are linear, and are a pair of real matrices per slice: ``rows @ slice @ columns.T``. The
grid is ``centre``: the field of view stays, and sample k of m lies at index
``(k + 1/2) n / m - 1/2`` of the n samples that it came from. That is the spectrum cut at m / 2
cycles per field of view, a phase ramp, and the inverse transform at m points, times m / n.

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
Matrix = NDArray[np.float32]


@lru_cache(maxsize=64)
def resample_matrix(n: int, m: int) -> Matrix:
    """Matrix (m, n) float32, read-only, that takes a line of n samples to one of m.

    >>> resample_matrix(6, 4).sum(axis=1).round(6).tolist()  # a constant stays itself
    [1.0, 1.0, 1.0, 1.0]
    """
    if n < 1 or m < 1:
        raise ValueError(f"need at least one sample on both sides, got {n=}, {m=}")
    if n == m:
        matrix = np.eye(n)
    else:
        at = (np.arange(m) + 0.5) * n / m - 0.5
        matrix = _band(at[:, None] - np.arange(n), n, min(n, m), 1.0 if m < n else 0.5)
    out = matrix.astype(np.float32)
    out.setflags(write=False)
    return out


def _band(distance: NDArray[np.float64], n: int, lines: int, edge: float) -> NDArray[np.float64]:
    """Sum over ``lines`` frequencies about zero of exp(2 pi i f distance / n) / n.

    With an even number the two outermost, at lines / 2 cycles, count ``edge`` each.
    """
    frequencies = np.arange(1, lines // 2 + 1)
    weights = np.full(lines // 2, 2.0)
    if lines % 2 == 0:
        weights[-1] *= edge
    out = np.ones_like(distance)
    for f, weight in zip(frequencies, weights, strict=True):
        out += weight * np.cos(2 * np.pi / n * f * distance)
    return out / n


def resample(slices: Slices, matrix: tuple[int, int]) -> NDArray[np.float32]:
    """Slices (..., h, w) on ``matrix`` (rows, columns): float32 (..., rows, columns)."""
    rows = resample_matrix(slices.shape[-2], matrix[0])
    columns = resample_matrix(slices.shape[-1], matrix[1])
    x = np.asarray(slices, np.float32)
    # the axis that shrinks more goes first: fewer multiplications
    if len(rows) * slices.shape[-1] <= len(columns) * slices.shape[-2]:
        return np.asarray((rows @ x) @ columns.T)
    return np.asarray(rows @ (x @ columns.T))


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
