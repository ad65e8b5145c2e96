"""The intensity rule: divide by the 99.9th percentile of the non-zero magnitudes.

The percentile is an order statistic, the smallest magnitude that at least 99.9 % of the
non-zero magnitudes do not exceed, taken on values rounded to float32. So no interpolation
enters, and the streamed twin returns the very same number as the one that sees the array.
Values that are not finite in float32 count as zero. A volume without a non-zero value has
unit 1. Nothing is clipped.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
PERCENTILE = 99.9
INFINITY_BITS = 0x7F800000  # float32: magnitudes at or above are infinite or NaN


def as_float32(values: NDArray[Any]) -> NDArray[np.float32]:
    """Values rounded to float32; what is too large for it becomes infinite, silently."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(values, np.float32)


def decibels(peak: float | Doubles, squared_error: float | Doubles) -> Doubles:
    """PSNR in dB of mean squared errors against peaks, both above zero, in one shape.

    >>> round(float(decibels(1.0, 0.01)), 6)
    20.0
    """
    return np.asarray(10 * np.log10(np.square(peak) / squared_error))


def intensity_unit(values: NDArray[Any], percentile: float = PERCENTILE) -> float:
    """Unit of an array of any shape; see the module for the rule.

    >>> intensity_unit(np.array([0, 0, -3, 1, 2, np.nan]))
    3.0
    >>> intensity_unit(np.zeros(4))
    1.0
    """
    magnitudes = np.abs(as_float32(values)).ravel()
    magnitudes = magnitudes[(magnitudes > 0) & np.isfinite(magnitudes)]
    if magnitudes.size == 0:
        return 1.0
    rank = _rank(magnitudes.size, percentile)
    return float(np.partition(magnitudes, rank)[rank])


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamedUnit:
    """The unit, and how many values were not finite in float32, or were below zero."""

    unit: float
    not_finite: int
    negative: int = 0


def streamed_intensity_unit(
    parts: Callable[[], Iterable[NDArray[np.float32]]], percentile: float = PERCENTILE
) -> StreamedUnit:
    """`intensity_unit` of values that come in parts, in 0.5 MB of memory beside one part.

    ``parts`` is called twice and must yield the same values each time: the first pass counts
    the upper 16 bits of each magnitude, the second the lower 16 bits of those that share the
    upper bits of the wanted one (a radix selection: non-negative floats sort as their bits).

    >>> streamed_intensity_unit(lambda: [np.float32([0, -3]), np.float32([1, 2, np.nan])])
    StreamedUnit(unit=3.0, not_finite=1, negative=1)
    """
    upper = np.zeros(1 << 15, np.int64)
    zeros = negative = 0
    for part in parts():
        bits = _magnitude_bits(part)
        below = np.ravel(part) < 0
        if below.any():
            negative += int(np.count_nonzero(below & (bits < INFINITY_BITS)))
        upper += np.bincount(bits >> 16, minlength=upper.size)
        zeros += bits.size - int(np.count_nonzero(bits))
    not_finite = int(upper[INFINITY_BITS >> 16 :].sum())
    upper[INFINITY_BITS >> 16 :] = 0
    upper[0] -= zeros
    total = int(upper.sum())
    if total == 0:
        return StreamedUnit(unit=1.0, not_finite=not_finite, negative=negative)
    rank = _rank(total, percentile)
    cumulative = np.cumsum(upper)
    high = int(np.searchsorted(cumulative, rank, side="right"))
    rank -= int(cumulative[high - 1]) if high else 0

    lower = np.zeros(1 << 16, np.int64)
    for part in parts():
        bits = _magnitude_bits(part)
        same = bits[(bits >> 16) == high] & 0xFFFF
        lower += np.bincount(same, minlength=lower.size)
    if high == 0:
        lower[0] = 0
    low = int(np.searchsorted(np.cumsum(lower), rank, side="right"))
    unit = np.array([high << 16 | low], np.uint32).view(np.float32)[0]
    return StreamedUnit(unit=float(unit), not_finite=not_finite, negative=negative)


def _magnitude_bits(part: NDArray[np.float32]) -> NDArray[np.int32]:
    """Bit patterns of the magnitudes, flat: sorted as the magnitudes are."""
    return np.ascontiguousarray(part, np.float32).ravel().view(np.int32) & 0x7FFFFFFF


def _rank(count: int, percentile: float) -> int:
    """Index of the order statistic in ascending order, in whole numbers so that it is exact.

    >>> _rank(1000, 99.9), _rank(1001, 99.9), _rank(1, 99.9)
    (998, 999, 0)
    """
    if not 0 < percentile <= 100:
        raise ValueError(f"need 0 < percentile <= 100, got {percentile}")
    parts_per_million = round(percentile * 10_000)
    return max(-(-count * parts_per_million // 1_000_000) - 1, 0)
