"""Frames of one kind and one orientation become a volume, or one line says why they cannot.

The array order is dcm2niix's: i along a row of pixels, j up the columns (rows are flipped), k
along the normal row x column, whatever order the files came in. One volume that was acquired as
3D, and not by EPI, is turned further: its axes are put nearest to left-right,
posterior-anterior, inferior-superior, each ascending.
"""

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poan_runtime.errors import PoanError
from poan_runtime.geometry import Affine
from poan_runtime.images.dicom.frames import Frame

SAME_PLACE_MM = 0.01
"""Frames nearer than this along the normal are at one place."""
MOST_DRIFT = 0.1
"""How far, in pixels, a slice may lie beside the normal through the first one."""
STEP_TOLERANCE = 0.02
"""Distances of slices may differ by this share: positions come rounded to 0.01 mm at worst."""
UNIT_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """How array axes lie against the stack's (columns, rows up, slices).

    Array axis a is stack axis ``axes[a]``, counted from its end if ``flips[a]``.
    """

    axes: tuple[int, int, int] = (0, 1, 2)
    flips: tuple[bool, bool, bool] = (False, False, False)

    def matrix(self, shape: Sequence[int]) -> Affine:
        """(4, 4) from array index to stack index; ``shape`` is the stack's.

        >>> turn = Turn(axes=(2, 0, 1), flips=(True, False, False))
        >>> (turn.matrix((5, 6, 7)) @ [1, 2, 3, 1]).tolist()
        [2.0, 3.0, 5.0, 1.0]
        """
        matrix = np.zeros((4, 4))
        matrix[3, 3] = 1
        for a, (axis, flip) in enumerate(zip(self.axes, self.flips, strict=True)):
            matrix[axis, a] = -1 if flip else 1
            matrix[axis, 3] = shape[axis] - 1 if flip else 0
        return matrix

    def to_array(self, stacked: NDArray[Any]) -> NDArray[Any]:
        """A view of (columns, rows up, slices) in array order."""
        flipped = tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)
        return stacked.transpose(self.axes)[flipped]

    def to_stack(self, array: NDArray[Any]) -> NDArray[Any]:
        """Undoes `to_array`."""
        flipped = tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)
        back = [self.axes.index(axis) for axis in range(3)]
        return array[flipped].transpose(back)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stack:
    """One volume or one series of volumes, ready to be read.

    ``frames[v][k]`` is slice k of volume v. ``affine`` maps an array index to RAS+ mm.
    """

    key: str
    frames: tuple[tuple[Frame, ...], ...]
    affine: Affine
    turn: Turn
    warnings: tuple[str, ...]

    @property
    def first(self) -> Frame:
        """The first frame of the first volume."""
        return self.frames[0][0]

    @property
    def extents(self) -> tuple[int, int, int]:
        """(columns, rows, slices)."""
        return self.first.columns, self.first.rows, len(self.frames[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents along the array axes, and volumes if there are several."""
        x, y, z = (self.extents[axis] for axis in self.turn.axes)
        return (x, y, z, len(self.frames)) if len(self.frames) > 1 else (x, y, z)


def build_stack(key: str, frames: Sequence[Frame]) -> Stack:
    """Sort frames into slices and volumes; PoanError says what they lack."""
    first = frames[0]
    row, column, normal = _directions(key, first)
    if any(frame.position is None for frame in frames):
        raise PoanError(f"series {key}: an image does not say where it lies")
    places = _by_place(frames, normal)
    _check_counts(key, places)
    volumes = tuple(zip(*(sorted(place, key=lambda f: f.order) for place in places), strict=True))
    positions = np.array([frame.position for frame in volumes[0]])  # (slices, 3)
    warnings: list[str] = []
    step = _step(key, first, positions, normal, warnings)
    _check_drift(key, positions, normal, first)
    affine = _affine(first, row, column, normal, step, positions[0])
    turn = Turn()
    if first.volumetric and not first.echo_planar and len(volumes) == 1 and len(places) > 1:
        turn = _nearest_turn(affine)
    turned = affine @ turn.matrix((first.columns, first.rows, len(places)))
    return Stack(key=key, frames=volumes, affine=turned, turn=turn, warnings=tuple(warnings))


def _nearest_turn(affine: Affine) -> Turn:
    """The turn that brings the axes nearest to RAS+."""
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    x, y, z = max(
        itertools.permutations(range(3)),
        key=lambda axes: sum(abs(cosines[world, axis]) for world, axis in enumerate(axes)),
    )
    return Turn(axes=(x, y, z), flips=(cosines[0, x] < 0, cosines[1, y] < 0, cosines[2, z] < 0))


def _directions(key: str, frame: Frame) -> tuple[NDArray[np.float64], ...]:
    if frame.orientation is None or frame.spacing is None or min(frame.spacing) <= 0:
        raise PoanError(
            f"series {key}: no orientation or pixel spacing, so where its voxels lie is not known"
        )
    row, column = np.array(frame.orientation[:3]), np.array(frame.orientation[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(row @ column)) > UNIT_TOLERANCE:
        raise PoanError(f"series {key}: its directions are not two unit vectors at a right angle")
    row, column = row / lengths[0], column / lengths[1]
    return row, column, np.cross(row, column)


def _by_place(frames: Sequence[Frame], normal: NDArray[np.float64]) -> list[list[Frame]]:
    """Frames at one place along the normal together, places in ascending order."""
    ordered = sorted(frames, key=lambda frame: float(np.dot(normal, frame.position or ())))
    places: list[list[Frame]] = []
    last = -np.inf
    for frame in ordered:
        along = float(np.dot(normal, frame.position or ()))
        if along - last > SAME_PLACE_MM:
            places.append([])
        places[-1].append(frame)
        last = along
    return places


def _check_counts(key: str, places: Sequence[Sequence[Frame]]) -> None:
    counts = [len(place) for place in places]
    if min(counts) == max(counts):
        return
    odd = next(i for i, count in enumerate(counts) if count != max(counts))
    raise PoanError(
        f"series {key}: slice {odd + 1} of {len(counts)} is there {counts[odd]} times and others "
        f"{max(counts)} times; a time point lacks slices, or the folder mixes several scans"
    )


def _step(
    key: str,
    first: Frame,
    positions: NDArray[np.float64],
    normal: NDArray[np.float64],
    warnings: list[str],
) -> float:
    """Distance of neighbouring slices in mm."""
    if len(positions) == 1:
        if first.step is None:
            warnings.append("one slice without a thickness; taken as 1 mm")
        return first.step or 1.0
    steps = np.diff(positions @ normal)
    typical = float(np.median(steps))
    if (np.abs(steps - typical) <= STEP_TOLERANCE * typical).all():
        return float((positions[-1] - positions[0]) @ normal) / (len(positions) - 1)
    smallest = float(steps.min())
    multiples = np.rint(steps / smallest)
    if (np.abs(steps - multiples * smallest) <= STEP_TOLERANCE * steps).all():
        missing = int(multiples.sum()) - len(steps)
        gap = int(np.argmax(multiples > 1)) + 1
        raise PoanError(
            f"series {key}: {missing} slices are missing, the first behind slice {gap} of "
            f"{len(positions)}"
        )
    raise PoanError(
        f"series {key}: slices are {smallest:.3g} to {steps.max():.3g} mm apart; expected one "
        "distance"
    )


def _check_drift(
    key: str, positions: NDArray[np.float64], normal: NDArray[np.float64], first: Frame
) -> None:
    """Slices must lie straight above one another."""
    offsets = positions - positions[0]
    beside = offsets - np.outer(offsets @ normal, normal)
    drift = float(np.linalg.norm(beside, axis=1).max())
    assert first.spacing is not None
    if drift > MOST_DRIFT * min(first.spacing):
        height = max(float(np.abs(offsets @ normal).max()), SAME_PLACE_MM)
        angle = float(np.degrees(np.arctan2(drift, height)))
        raise PoanError(
            f"series {key}: the stack leans by {angle:.1f} degrees (gantry tilt, or slices of "
            "several scans); expected slices straight above one another"
        )


def _affine(
    first: Frame,
    row: NDArray[np.float64],
    column: NDArray[np.float64],
    normal: NDArray[np.float64],
    step: float,
    position: NDArray[np.float64],
) -> Affine:
    """(i, j, k) to RAS+: x and y change sign against DICOM's LPS+, j counts from the last row."""
    assert first.spacing is not None
    between_rows, between_columns = first.spacing
    lps = np.eye(4)
    lps[:3, 0] = row * between_columns
    lps[:3, 1] = -column * between_rows
    lps[:3, 2] = normal * step
    lps[:3, 3] = position + column * between_rows * (first.rows - 1)
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


def without_repeats(frames: Sequence[Frame]) -> tuple[list[Frame], int]:
    """Each instance once, and how many files repeat one."""
    seen: dict[str, Frame] = {}
    by_file: dict[str, list[Frame]] = defaultdict(list)
    for frame in frames:
        if seen.setdefault(frame.instance_uid, frame).path == frame.path:
            by_file[frame.instance_uid].append(frame)
    kept = [frame for group in by_file.values() for frame in group]
    return kept, len({f.path for f in frames}) - len({f.path for f in kept})
