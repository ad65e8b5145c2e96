"""Native resolution: where along each in-plane axis a scanner's zero-filling begins.

A scanner that fills its k-space with zeros leaves next to nothing beyond the lines that it
measured, apart from what taking the magnitude and rounding put there. So the spectrum ends in a
foot: steep before it, level and low behind it. A hard edge is a cliff and a foot at once; with a
filter on the measured lines the fall begins earlier, and the foot is still where they end. A
spectrum without a foot is full: it may fall all the way to Nyquist, and often does.

The profile along an axis is the mean logarithm of the power at low frequencies of the other
axis, where a scanner that skips the corners of k-space still measured. A cutoff is a share of
Nyquist, which is the share of the matrix that was measured.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poan_runtime.signal.kspace import Slices

Profile = NDArray[np.float64]

SLICES_LOOKED_AT = 16
FEWEST_LINES = 48
LOWEST, HIGHEST = 0.28, 0.88
"""Feet are looked for between these shares of Nyquist: below, every spectrum falls steeply (a
scan filled to four times its matrix is not found); beyond, there is nothing to gain."""
OTHER_AXIS = (0.02, 0.35)
WINDOW = 0.06
"""Share of Nyquist over which a slope is measured."""
BEND = 5.0
"""Least change of slope at a foot, in decades of power per Nyquist. Of 59 real volumes and what was
made of 7 of them, full axes reach 3.8, zero-filled ones start at 6.1."""
ENDS = 0.4
"""What lies behind a foot is lower by this, in decades, than all that lies before the fall: else
the foot is a dip of a spectrum that goes on, as smooth shapes have them. Of 205 feet of real
volumes and of what was made of 7 of them the least is 0.59; a phantom's dips reach 0.17."""
ONE_SIDED = 0.75
"""Largest sharp fall, in decades, that a one-sided band makes: log10(4), and its spread."""
STEEPER = 1.5
"""A filter's fall is steeper by this, in decades per Nyquist, than the spectrum farther inside."""
MASKED, MOST_KEPT = 0.15, 0.75
"""A mask cuts through a slice if half of the voxels at its edge are above this share of the median
of all that it keeps, and if it keeps no more than this share of the slice."""
FADE, FADE_STEP = 12, 4
"""Voxels from a mask's edge to where the slice counts, three times as far as one smoothing goes."""
SOLID = 0.98
"""Share of voxels that a mask keeps about one that lies inside: single zeros are no edge."""
LEAK_BINS = 2.0
"""What the window and the three-bin slope put between the last measured bin and the foot."""


@dataclass(frozen=True, kw_only=True)
class Native:
    """What was found: cutoffs (rows, columns), None where the spectrum is full; the matrices."""

    matrix: tuple[int, int]
    """Rows and columns of the slices as they are."""
    native: tuple[int, int]
    """Rows and columns that were measured: to be given to `to_native`."""
    cutoffs: tuple[float | None, float | None]
    reasons: tuple[str, str]

    @property
    def is_zero_filled(self) -> bool:
        return self.native != self.matrix

    def __str__(self) -> str:
        """One line for the user.

        >>> print(find_native(np.zeros((1, 64, 64))))
        native 64x64 (rows: no signal; columns: no signal)
        """
        rows, columns = self.native
        return f"native {rows}x{columns} (rows: {self.reasons[0]}; columns: {self.reasons[1]})"


def sampled(count: int, wanted: int = SLICES_LOOKED_AT) -> list[int]:
    """Which of ``count`` slices to look at: spread over the middle three fifths.

    >>> sampled(10, 3), sampled(1)
    ([2, 4, 7], [0])
    """
    picks = np.linspace(0.2 * count, max(0.2 * count, 0.8 * count - 1), wanted)
    return sorted({int(p) for p in picks})


def find_native(slices: Slices | Iterable[Slices]) -> Native:
    """Native resolution of slices (n, h, w), or of an iterator of slices (h, w).

    Of an array 16 slices are looked at, of an iterator all; what is kept meanwhile is one slice's
    spectrum. Not-finite values count as zero. Raises ValueError without any slice.
    """
    if isinstance(slices, np.ndarray):
        slices = slices[sampled(len(slices))]
    power, inside, matrix = _power(slices)
    found = [_along(power, axis, matrix) for axis in (0, 1)]
    if inside.any():  # a foot that shows beside a mask's edge needs no second look
        found = [one if one[0] else _along(inside, axis, matrix) for axis, one in enumerate(found)]
    cutoffs = (found[0][0], found[1][0])
    native = tuple(n if c is None else round(c * n) for n, c in zip(matrix, cutoffs, strict=True))
    return Native(
        matrix=matrix,
        native=(native[0], native[1]),
        cutoffs=cutoffs,
        reasons=(found[0][1], found[1][1]),
    )


def _power(slices: Iterable[Slices]) -> tuple[NDArray[Any], NDArray[Any], tuple[int, int]]:
    """Power spectrum summed over the slices, (h, w // 2 + 1); the same inside masks; and (h, w).

    The second is zero where no mask cuts through a slice.
    """
    total: NDArray[Any] = np.zeros(0)
    masked = False
    for image in slices:
        h, w = image.shape
        if not total.size:
            total, inside = np.zeros((2, h, w // 2 + 1))
            window = np.outer(_hann(h), _hann(w)).astype(np.float32)
        clean = np.nan_to_num(np.asarray(image, np.float32), posinf=0.0, neginf=0.0)
        power = np.abs(np.fft.rfft2(clean * window)) ** 2
        total += power
        faded = without_mask_edge(clean)
        masked = masked or faded is not clean
        inside += power if faded is clean else np.abs(np.fft.rfft2(faded * window)) ** 2
    if not total.size:
        raise ValueError("need at least one slice to find the native resolution")
    return total, inside * masked, (h, w)


def without_mask_edge(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """A slice (h, w) faded out towards a mask's edge; as it is where no mask cuts through it.

    Skull stripping sets voxels to zero beside bright ones. That edge has power at every frequency
    and buries the foot. Inside, the slice less its median fades out over some voxels.
    """
    mask = image != 0
    zero_beside = np.zeros_like(mask)
    for axis in (0, 1):
        for by in (-1, 1):
            zero_beside |= ~np.roll(mask, by, axis)
    edge = image[mask & zero_beside]
    if not edge.size or mask.all():
        return image
    middle = np.median(image[mask])
    if np.median(edge) < MASKED * middle or mask.mean() > MOST_KEPT:
        return image
    inside = (_box_mean(mask, FADE) > SOLID).astype(np.float64)
    for _ in range(FADE // FADE_STEP):
        inside = _box_mean(inside, FADE_STEP)
    return np.asarray((image - middle) * inside, np.float32)


def _box_mean(image: NDArray[Any], radius: int) -> Profile:
    """Mean over (2 radius + 1) voxels along both axes, of an image with zeros about it."""
    side = 2 * radius + 1
    out = np.asarray(image, np.float64)
    for _ in range(2):  # along the columns, then, transposed, along the rows
        sums = np.cumsum(np.pad(out, ((0, 0), (radius + 1, radius))), axis=1)
        out = ((sums[:, side:] - sums[:, :-side]) / side).T
    return out


def _hann(n: int) -> Profile:
    """Periodic Hann window: it spreads a frequency over three bins and no farther."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n)


def profile(power: NDArray[Any], axis: int, matrix: tuple[int, int]) -> Profile:
    """Mean log10 power at 0, 1, ... n // 2 cycles along ``axis`` of a spectrum by rfft2."""
    frequencies = (np.abs(np.fft.fftfreq(matrix[0])) * 2, np.fft.rfftfreq(matrix[1]) * 2)
    low, high = OTHER_AXIS
    other = frequencies[1 - axis]
    lines = np.compress((other > low) & (other < high), power, axis=1 - axis)
    log_power = np.log10(lines + lines.max(initial=0) * 1e-12 + 1e-300).mean(axis=1 - axis)
    half = matrix[axis] // 2 + 1
    if axis == 1:
        return np.asarray(log_power)
    mirrored = log_power[-np.arange(half) % matrix[0]]
    return np.asarray((log_power[:half] + mirrored) / 2)


def _along(power: NDArray[Any], axis: int, matrix: tuple[int, int]) -> tuple[float | None, str]:
    if not power.any():
        return None, "no signal"
    if min(matrix) < FEWEST_LINES:
        return None, f"fewer than {FEWEST_LINES} lines, too few to tell"
    return find_foot(profile(power, axis, matrix), matrix[axis])


def find_foot(line: Profile, n: int) -> tuple[float | None, str]:
    """(cutoff or None, why) of a profile of ``n`` samples' log10 power, n // 2 + 1 bins.

    From Nyquist inwards, the first place where the slope changes by BEND and more, where the
    spectrum ends for good, and which is not the step of a one-sided band (partial Fourier): that
    halves the signal's amplitude beyond it and is no end of what was measured.
    """
    width = max(3, round(WINDOW * n / 2))
    bends = _bends(line, n, width)
    one_sided = False
    for k in sorted(bends, reverse=True):
        near = [bends[j][0] for j in range(k - width, k + width + 1) if j in bends]
        if bends[k][0] < max(BEND, *near) or k > HIGHEST * n / 2:
            continue
        foot = _foot(line, k, width, bends[k][1])
        cutoff = 2 * (foot - LEAK_BINS) / n
        if cutoff < LOWEST:
            break
        if not _ends(line, foot, width):
            continue
        if not _is_one_sided(line, foot, n, width):
            return round(cutoff, 3), f"zero-filled beyond {cutoff:.2f} of Nyquist"
        one_sided = True
    return None, "full, one-sided in part" if one_sided else "full"


def _bends(line: Profile, n: int, width: int) -> dict[int, tuple[float, float]]:
    """Bin -> (slope before it less slope behind it, level behind it)."""
    out = {}
    last = len(line) - 2  # the two bins at Nyquist belong to the receiver's filter
    for k in range(max(width, round(LOWEST * n / 2)), last - 4):
        behind = line[k + 2 : min(last, k + 2 + 2 * width)]
        before = (line[k - width] - line[k]) / (2 * width / n)
        out[k] = (before - max(0.0, _fall(behind, n)), float(np.median(behind)))
    return out


def _fall(part: Profile, n: int) -> float:
    """Decades per Nyquist by which a part of a profile falls: least squares."""
    if len(part) < 3:
        return 0.0
    return -float(np.polyfit(np.arange(len(part)) * 2 / n, part, 1)[0])


def _foot(line: Profile, k: int, width: int, level: float) -> float:
    """Bin at which the steepest line of the fall before bin k meets the level behind it."""
    first = max(1, k - 3 * width)
    falls = line[first - 1 : k] - line[first + 1 : k + 2]
    steepest = int(np.argmax(falls))
    at = first + steepest
    return min(float(k), at + float((line[at] - level) / (falls[steepest] / 2)))


def _ends(line: Profile, foot: float, width: int) -> bool:
    """Whether what is behind the foot stays below what is before the fall."""
    edge = int(foot - LEAK_BINS)
    behind = line[int(np.ceil(foot)) + 1 : len(line) - 2]
    return bool(line[1 : max(2, edge - width + 1)].min() - behind.max() > ENDS)


def _is_one_sided(line: Profile, foot: float, n: int, width: int) -> bool:
    """A sharp step by a factor of 4 or less, and no fall that led up to it."""
    edge = int(foot - LEAK_BINS)
    near = _fall(line[max(0, edge - 2 * width) : edge], n)
    inside = line[max(0, edge - 6 * width) : max(6, edge - 2 * width)]
    far = float(np.median(inside[:-3] - inside[3:])) * n / 6  # a step in there does not count
    step = line[max(0, edge - 2) : edge].mean() - line[edge + 4 : edge + 7].mean()
    step -= max(0.0, far) * 6.5 * 2 / n  # the spectrum's own fall over the 6.5 bins between
    return bool(step < ONE_SIDED and near < far + STEEPER)
