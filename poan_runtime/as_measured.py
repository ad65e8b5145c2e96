"""What the scanner measured: the native matrix before the network, the measured band after it.

A scanner that zero-fills hands over more voxels than it measured. The network was trained on
measured ones, so it gets the spectrum cropped to the native matrix. After it, the part of SR that
lies in the measured band is compared with LR: how far the network moved it is the figure of
faithfulness, and where it is wanted LR's band is put back.
"""

import dataclasses
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from poan_runtime.errors import PoanError
from poan_runtime.geometry import Affine, in_plane_axes, slice_axis, spatial_shape
from poan_runtime.images.source import Slab, Source
from poan_runtime.intensity import as_float32
from poan_runtime.models.manifest import Manifest
from poan_runtime.network import SPEED_ALONE, Settings
from poan_runtime.signal.kspace import not_below_zero, resample, resampled_affine, to_native
from poan_runtime.signal.measured import Change, difference, put_back
from poan_runtime.signal.native import HIGHEST, LOWEST, Native, find_native, sampled
from poan_runtime.signal.noise import Noise, air_floor, noise_level
from poan_runtime.tiles.air import NO_AIR, Air

SMALLEST, LARGEST = 1e-12, 1e12
"""Magnitudes between which nothing overflows or vanishes in float32."""
FAINT = 0.02
"""Share of the intensity unit below which a voxel is as good as air, where air holds no noise."""
HIDDEN = 0.25
"""Share of the intensity unit above which noise hides tissue: no tile counts as air then."""
FAINT_MEAN = 1.25
"""How much more than its median the mean of air may be; of Rayleigh noise it is 1.06, and 1.25
where there is tissue of 0.7 sigma."""
AGREE = 0.03
"""Shares of the matrix by which header and spectrum may differ."""
SCANNER_LIKE = ("scanner", "truncated")
"""LR models whose LR is the centre of k-space: such a network belongs on the native matrix."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What was found of a scan: its native matrix and its noise, in the scan's own unit."""

    native: Native
    noise: Noise


class NativeSource:
    """A `Source` whose slices have the spectrum cropped to the matrix that was measured.

    The field of view stays: the voxels are larger by matrix / native along each axis. Where the
    stored slices have no negative values these have none. Slices across another axis than
    ``axis`` are cut from the whole volume, which is then in memory.
    """

    def __init__(self, source: Source, axis: int, native: Native) -> None:
        self.stored, self._axis, self.native = source, axis, native
        self._not_finite: dict[tuple[int, int], int] = {}
        before, after = native.matrix, native.native
        self.affine: Affine = resampled_affine(source.affine, before, after, axis)
        self.native_to_stored: Affine = resampled_affine(np.eye(4), before, after, axis)
        extents = dict(zip(in_plane_axes(axis), after, strict=True))
        self.shape = tuple(extents.get(i, n) for i, n in enumerate(source.shape))

    @property
    def path(self) -> Path | None:
        """That of the scan."""
        return self.stored.path

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the scan."""
        return self.stored.dtype

    @property
    def warnings(self) -> tuple[str, ...]:
        """Those of the scan."""
        return self.stored.warnings

    def read_slices(self, axis: int, start: int, stop: int, volume: int = 0) -> Slab:
        """See `Source.read_slices` and `cropped`."""
        if axis != self._axis:
            whole = self.read_slices(self._axis, 0, spatial_shape(self.shape)[self._axis], volume)
            ordered = np.moveaxis(whole, 0, self._axis)  # (x, y, z)
            return np.array(np.moveaxis(ordered, axis, 0)[start:stop], order="C")
        stored = self.stored.read_slices(axis, start, stop, volume)
        for index, image in enumerate(stored, start):
            self._not_finite[volume, index] = int(np.count_nonzero(~np.isfinite(image)))
        return self.to_native(stored)

    def not_finite(self, volume: int) -> int:
        """Voxels of a volume that are not finite, in the slices that were read."""
        return sum(count for (of, _), count in self._not_finite.items() if of == volume)

    def to_native(self, stored: Slab) -> Slab:
        """Stored slices (n, H, W) on the native matrix: (n, h, w)."""
        return cropped(stored, self.native.native)

    def sha256(self) -> dict[str, str]:
        """That of the scan."""
        return self.stored.sha256()

    def close(self) -> None:
        """The scan is closed by who opened it."""


def measured_of(source: Source, axis: int) -> Measured:
    """Native matrix and noise of the first volume, from some slices across ``axis``.

    A header that says what was acquired counts too: see `with_header`.
    """
    finite, unit = some_slices(source, axis)
    native = with_header(find_native(iter(finite)), stated_lines(source, axis))
    noise = noise_level(to_native(finite, native.native))
    return Measured(native=native, noise=noise.times(unit))


def air_in(
    source: Source, axis: int, measured: Measured, manifest: Manifest, volume: int, unit: float
) -> Air:
    """Up to where a tile of a volume counts as air; ``source`` is what the network sees.

    That is the median of the air's noise and ``air_k`` sigma above it; nothing is air where
    that is above HIDDEN of the intensity unit, as at an SNR of about 15. Where air holds no noise
    of its own, since it was masked or cut off, FAINT of the unit.
    """
    if manifest.air_k is None:
        return NO_AIR
    noise = measured.noise
    if volume:
        finite, scaled = some_slices(source, axis, volume)
        noise = noise_level(finite).times(scaled)
    floor = air_floor(noise, manifest.air_k)
    if floor <= FAINT * unit:
        return Air(FAINT * unit)
    return Air(floor, FAINT_MEAN * noise.background_median) if floor < HIDDEN * unit else NO_AIR


def some_slices(source: Source, axis: int, volume: int = 0) -> tuple[Slab, float]:
    """(slices / unit, unit) of a few slices across ``axis``, as `in_range` gives them."""
    count = spatial_shape(source.shape)[axis]
    slices = [source.read_slices(axis, k, k + 1, volume) for k in sampled(count)]
    return in_range(np.concatenate(slices))


def in_range(slices: Slab) -> tuple[Slab, float]:
    """(slices / unit, unit): squares and sums of them stay within float32.

    ``unit`` is 1 for ordinary values and else a power of two, so that no digit is lost. Values
    that are not finite count as zero.

    >>> scaled, unit = in_range(np.float32([[[3e38, np.nan]]]))
    >>> round(float(scaled.max()), 2), unit == 2.0**128
    (0.88, True)
    """
    finite: Slab = np.nan_to_num(slices, posinf=0.0, neginf=0.0)
    largest = float(np.abs(finite).max(initial=0))
    if largest == 0 or SMALLEST < largest < LARGEST:
        return finite, 1.0
    exponent = int(np.frexp(largest)[1])
    return np.ldexp(finite, -exponent), 2.0**exponent


def resampled(slices: Slab, matrix: tuple[int, int]) -> Slab:
    """Slices (..., h, w) of any finite magnitude on another matrix, by their spectrum."""
    finite, unit = in_range(slices)
    return as_float32(resample(finite, matrix) * np.float64(unit))


def cropped(slices: Slab, native: tuple[int, int]) -> Slab:
    """Slices (n, h, w) with the spectrum cropped to ``native``, not below zero if they are not.

    Values that are not finite count as zero.
    """
    finite, unit = in_range(slices)
    fewer = not_below_zero(to_native(finite, native), finite)
    return as_float32(fewer * np.float64(unit))


def filled_up(slices: Slab, matrix: tuple[int, int]) -> Slab:
    """Slices (n, h, w) with the spectrum filled up to ``matrix``; as they are if they have it."""
    if slices.shape[-2:] == matrix:
        return slices
    return not_below_zero(resampled(slices, matrix), slices)


def network_sees(
    source: Source, manifest: Manifest, settings: Settings
) -> tuple[Source, Affine | None, Measured | None]:
    """The source that the network gets, its map to stored voxels, and what was found.

    ``native="auto"`` crops for a model that was trained on scanner-like LR; one trained on
    bicubic LR does better on the matrix as it comes. The last is None on the ``kspace`` grid,
    where measured and native band have no rule here.
    """
    if manifest.grid != "centre":
        return source, None, None
    axis = slices_across(source, settings.axis)
    found = measured_of(source, axis)
    if not (found.native.is_zero_filled and wants_native(manifest, settings)):
        return source, None, found
    fewer = NativeSource(source, axis, found.native)
    return fewer, fewer.native_to_stored, found


@runtime_checkable
class SaysNative(Protocol):
    """A source whose header says what was acquired."""

    native_shape: tuple[int, int, int] | None
    """Lines along the three voxel axes, over the whole field of view."""


def stated_lines(source: Source, axis: int) -> tuple[int, int] | None:
    """Lines (rows, columns) that the header says were acquired, over the whole field of view."""
    if not isinstance(source, SaysNative) or source.native_shape is None:
        return None
    rows, columns = (source.native_shape[a] for a in in_plane_axes(axis))
    return rows, columns


def with_header(found: Native, stated: tuple[int, int] | None) -> Native:
    """What the spectrum shows, with the header's exact count of lines where the two agree.

    They agree along an axis where the spectrum ends within AGREE of it, where the spectrum could
    not tell, and where it shows no end and the header's lies farther out than one is looked for.
    Elsewhere the spectrum is believed: headers count lines in many ways.
    """
    if stated is None:
        return found
    rows, columns = (
        (lines, lines / full, f"{lines} of {full} acquired, says the header")
        if _agree(lines, full, seen, why)
        else (seen, cutoff, why)
        for lines, full, seen, cutoff, why in zip(
            stated, found.matrix, found.native, found.cutoffs, found.reasons, strict=True
        )
    )
    return Native(
        matrix=found.matrix,
        native=(rows[0], columns[0]),
        cutoffs=(rows[1], columns[1]),
        reasons=(rows[2], columns[2]),
    )


def _agree(lines: int, full: int, seen: int, why: str) -> bool:
    """Whether a header's count of lines, fewer than all, is to be used along an axis."""
    if not LOWEST * full <= lines < (1 - AGREE) * full:
        return False
    if why.startswith("zero-filled"):
        return abs(lines - seen) <= AGREE * full
    return lines > HIGHEST * full or not why.startswith("full")


def header_disagrees(source: Source, axis: int, found: Native) -> tuple[str, ...]:
    """One line where a header's acquired matrix is not the one that is used."""
    stated = stated_lines(source, axis)
    if stated is None:
        return ()
    off = [
        abs(min(n, full) - native) / full
        for n, full, native, why in zip(
            stated, found.matrix, found.native, found.reasons, strict=True
        )
        if why.startswith(("full", "zero-filled"))  # else the spectrum could not tell
    ]
    if max(off, default=0.0) <= AGREE:
        return ()
    matrix, native = ("x".join(map(str, pair)) for pair in (found.matrix, found.native))
    said = "x".join(map(str, stated))
    return (
        f"the header says that {said} of {matrix} lines were acquired, by the spectrum it is "
        f"{native}, which is used",
    )


@runtime_checkable
class SaysFrames(Protocol):
    """A source that knows which of its axes no gradient encoded."""

    frame_axis: int | None
    """The voxel axis across which a 2D acquisition's slices lie; None for a 3D acquisition."""


def slices_across(source: Source, asked: str | int | None) -> int:
    """The axis across which slices lie: what was asked for, the scanner's own, the thick one.

    A scanner's own are known where the header says that they were acquired in 2D. Raises PoanError
    for an axis that there is not.
    """
    if asked is None and isinstance(source, SaysFrames) and source.frame_axis is not None:
        return source.frame_axis
    return slice_axis(source.affine, source.shape, asked)


def cut_across_frames(source: Source, axis: int) -> tuple[str, ...]:
    """One line where slices are cut across another axis than the scanner's own lie."""
    if not isinstance(source, SaysFrames) or source.frame_axis in (None, axis):
        return ()
    return (
        f"slices are cut across axis {axis}, as was asked for; the scanner's own, acquired in 2D, "
        f"lie across axis {source.frame_axis}",
    )


def wants_native(manifest: Manifest, settings: Settings) -> bool:
    """Whether a zero-filled scan is cropped for this model."""
    if settings.native == "auto":
        return (manifest.degradation or {}).get("method") in SCANNER_LIKE
    return settings.native == "on"


def share_kept(manifest: Manifest, settings: Settings) -> float:
    """Share of LR's band that is put back: ``auto`` takes what validation found for the model."""
    asked = settings.keep_measured
    wish = manifest.keep_measured if asked == "auto" else asked
    share = {"on": 1.0, "off": 0.0, None: 0.0}.get(wish, wish)  # type: ignore[arg-type]
    if not (isinstance(share, int | float) and 0 <= share <= 1):
        raise PoanError(f"keep_measured: expected auto, on, off or a share from 0 to 1, got {wish}")
    return float(share)


def decided(manifest: Manifest, settings: Settings) -> dict[str, Any]:
    """The settings that decide voxels, with what the manifest says of the band and of air."""
    named = dataclasses.asdict(settings) | {
        "keep_measured": share_kept(manifest, settings),
        "air_k": manifest.air_k if settings.skip else None,
    }
    return {name: value for name, value in named.items() if name not in SPEED_ALONE}


@dataclasses.dataclass
class MeasuredBand:
    """Compares SR's measured band with LR, slab by slab, and puts a ``share`` of LR's back."""

    scale: int
    share: float
    change: Change = dataclasses.field(default_factory=Change)

    def __call__(self, lr: Slab, sr: Slab) -> tuple[Slab, Slab]:
        """(sr to be written, LR - down(SR) of what the network made), for lr (n, h, w)."""
        finite, unit = in_range(lr)
        changed = difference(finite, sr if unit == 1 else sr / np.float64(unit), self.scale)
        if unit != 1:
            finite, changed = (as_float32(x * np.float64(unit)) for x in (finite, changed))
        self.change.add(finite, changed)
        if not self.share:
            return sr, changed
        return as_float32(put_back(sr, changed, self.scale, self.share)), changed
