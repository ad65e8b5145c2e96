"""The matrix at which a series is seen: what was acquired of it, found once."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from poan_runtime.as_measured import AGREE, in_range, wants_native, with_header
from poan_runtime.errors import Say
from poan_runtime.images.source import Slab
from poan_runtime.models.manifest import Manifest
from poan_runtime.network import Settings
from poan_runtime.services.mrd.header import Encoding, encodings, lines_of
from poan_runtime.services.mrd.wire import Image
from poan_runtime.signal.native import LOWEST, Native, find_native

SURE = 0.4
"""Least share of Nyquist at which one slice's spectrum is believed to end: of 138 full axes of
single slices of 22 real volumes three seemed to end below a third, none beyond."""
WHOLE = "as it comes"


class NativeMatrices:
    """Finds the native matrix of each series of a connection.

    A header's encoded space says it exactly. Without one a single slice does not tell it well
    enough to throw lines away (of slices off the middle a third show no end, a sixth another), so
    images are then taken as they come, with a word if the first looks zero-filled; all slices of a
    volume tell it as they do for poan-run.
    """

    def __init__(self, manifest: Manifest, settings: Settings, say: Say) -> None:
        self._wanted = manifest.grid == "centre" and wants_native(manifest, settings)
        self._say, self._encodings = say, tuple[Encoding, ...]()
        self._found: dict[tuple[int, int, int], tuple[int, int]] = {}

    def read_header(self, header: str) -> None:
        """Take the measurement's header; whatever it holds."""
        self._encodings = encodings(header)

    def of(self, image: Image, volume: Sequence[Image] = ()) -> tuple[int, int]:
        """(rows, columns) for an image; ``volume`` are all images of its series, if they are here.

        The first image of a series settles it for those of the same matrix.
        """
        rows, columns = image.data.shape[-2:]
        series = int(image.head["image_series_index"])
        place = (series, rows, columns)
        if place not in self._found:
            native = self._find(image, volume) if self._wanted else None
            self._found[place] = native.native if native else (rows, columns)
            if native and (line := _told(native)):
                self._say(f"series {series}: {line}")
        return self._found[place]

    def _find(self, image: Image, volume: Sequence[Image]) -> Native:
        field = image.head["field_of_view"]
        stated = lines_of(self._encodings, (float(field[0]), float(field[1])))
        if volume:
            seen = find_native(_planes(_first_volume(image, volume)))
            return with_header(seen, _nearest(stated, seen))
        seen = find_native(_planes([image]))
        return _by_header(seen, _nearest(stated, seen))


def _planes(images: Sequence[Image]) -> Slab:
    planes = [image.data.reshape(-1, *image.data.shape[2:]) for image in images]
    return in_range(np.asarray(np.concatenate(planes), np.float32))[0]


def _first_volume(image: Image, images: Sequence[Image]) -> list[Image]:
    """The images of one matrix and of the first time point, in order of their slices."""
    counters = ("repetition", "phase", "contrast", "set", "average")
    alike = [other for other in images if other.data.shape[-2:] == image.data.shape[-2:]]
    volumes = [tuple(int(other.head[name]) for name in counters) for other in alike]
    first = min(volumes)
    chosen = [one for one, volume in zip(alike, volumes, strict=True) if volume == first]
    return sorted(chosen, key=lambda one: int(one.head["slice"]))


def _nearest(stated: list[tuple[int, int]], seen: Native) -> tuple[int, int] | None:
    """Of the orders that a header leaves open the one that the spectrum agrees with; the first."""

    def agreeing(lines: tuple[int, int]) -> int:
        pairs = zip(lines, seen.native, seen.matrix, strict=True)
        return sum(abs(min(n, full) - native) <= AGREE * full for n, native, full in pairs)

    return max(stated, key=agreeing, default=None)


def _by_header(seen: Native, stated: tuple[int, int] | None) -> Native:
    """What a header says of a single slice, or a wider end that its spectrum shows."""
    if stated is None:
        return dataclasses.replace(seen, native=seen.matrix)
    found = [
        _along(lines, full, native, why)
        for lines, full, native, why in zip(
            stated, seen.matrix, seen.native, seen.reasons, strict=True
        )
    ]
    return Native(
        matrix=seen.matrix,
        native=(found[0][0], found[1][0]),
        cutoffs=(found[0][0] / seen.matrix[0], found[1][0] / seen.matrix[1]),
        reasons=(found[0][1], found[1][1]),
    )


def _along(lines: int, full: int, native: int, why: str) -> tuple[int, str]:
    """Lines to keep along one axis, and why."""
    if not LOWEST * full <= lines < (1 - AGREE) * full:
        return full, WHOLE
    if why.startswith("zero-filled") and native > lines + AGREE * full:
        return native, why
    return lines, f"{lines} of {full} acquired, says the header"


def _told(native: Native) -> str:
    """One line about a zero-filled series; empty for others."""
    if native.is_zero_filled:
        return f"zero-filled, {native}; super-resolved from there"
    if not any(map(_surely, native.reasons, native.cutoffs)):
        return ""
    return (
        "its first image looks zero-filled and no header says what was acquired: taken as it "
        "comes; turn interpolation off, or use --wait-volume"
    )


def _surely(why: str, cutoff: float | None) -> bool:
    return why.startswith("zero-filled") and cutoff is not None and cutoff >= SURE
