"""Where voxels lie: slice axis, in-plane axes and the half-voxel rule, stated once.

Arrays stay in the file's voxel order. An *affine* is (4, 4) float64 and maps a voxel index
(i, j, k) to RAS+ millimetres (or the unit that the header names). Super-resolution is
in-plane only: the slice axis keeps its extent and its spacing.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from poan_runtime.errors import PoanError

Affine = NDArray[np.float64]
Grid = Literal["centre", "kspace"]

NEARLY_EQUAL = 1.1
"""Spacings within this factor of the largest count as equal to it."""

WORLD_AXES = {"sagittal": 0, "coronal": 1, "axial": 2}


def spatial_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """The three spatial extents of a shape of 2 to 7 axes; a 2D image has one slice.

    >>> spatial_shape((144, 160)), spatial_shape((64, 64, 30, 200))
    ((144, 160, 1), (64, 64, 30))
    """
    x, y, z = [*shape[:3], 1][:3]
    return x, y, z


def spacing(affine: Affine) -> NDArray[np.float64]:
    """Length of one voxel step along each of the three axes, (3,), in the affine's unit.

    >>> spacing(np.diag([0.5, 0.5, 4.0, 1.0])).tolist()
    [0.5, 0.5, 4.0]
    """
    return np.asarray(np.linalg.norm(np.asarray(affine, np.float64)[:3, :3], axis=0))


def slice_axis(affine: Affine, shape: Sequence[int], named: str | int | None = None) -> int:
    """Voxel axis across which 2D slices are stacked: 0, 1 or 2.

    ``named`` decides if given: 0, 1, 2, or ``sagittal``, ``coronal``, ``axial`` for the voxel
    axis nearest to left-right, posterior-anterior, inferior-superior. Otherwise a 2D image has
    axis 2; a volume with exactly one axis of one voxel is sliced across that axis; and else it
    is the axis of largest spacing, where axes within 10 % of the largest count as equal and
    the one nearest to inferior-superior is taken.

    >>> slice_axis(np.diag([1.2, 0.9, 0.9, 1.0]), (130, 256, 256))
    0
    >>> slice_axis(np.diag([1.0, 1.0, 1.05, 1.0]), (180, 256, 256))
    2
    >>> slice_axis(np.diag([1.0, 1.0, 5.0, 1.0]), (180, 256, 24), "coronal")
    1
    """
    if named is not None:
        return _named_axis(affine, named)
    if len(shape) < 3:
        return 2
    single = [axis for axis in range(3) if shape[axis] == 1]
    if len(single) == 1:
        return single[0]
    steps = spacing(affine)
    if not (np.isfinite(steps).all() and (steps > 0).all()):
        raise PoanError(
            f"cannot tell the slice axis: need three positive spacings, got {steps.tolist()}; "
            "name it with --axis"
        )
    largest = [axis for axis in range(3) if steps[axis] * NEARLY_EQUAL >= steps.max()]
    return _nearest_voxel_axis(affine, WORLD_AXES["axial"], largest)


def _named_axis(affine: Affine, named: str | int) -> int:
    if str(named) in {"0", "1", "2"}:
        return int(named)
    if named not in WORLD_AXES:
        raise PoanError(f"slice axis: expected 0, 1, 2 or one of {[*WORLD_AXES]}, got {named!r}")
    return _nearest_voxel_axis(affine, WORLD_AXES[str(named)], [0, 1, 2])


def _nearest_voxel_axis(affine: Affine, world: int, candidates: Sequence[int]) -> int:
    """The candidate voxel axis that makes the smallest angle with a world axis."""
    directions = np.asarray(affine, np.float64)[:3, :3]
    lengths = np.maximum(spacing(affine), np.finfo(np.float64).tiny)
    cosines = np.abs(directions[world] / lengths)
    return max(candidates, key=lambda axis: float(cosines[axis]))


def in_plane_axes(axis: int) -> tuple[int, int]:
    """The two other voxel axes, in order: rows (h) run along the first, columns (w) the second.

    >>> in_plane_axes(1)
    (0, 2)
    """
    first, second = (other for other in range(3) if other != axis)
    return first, second


def fine_to_coarse(scale: int, axis: int, grid: Grid) -> Affine:
    """Matrix (4, 4) from a fine (HR) voxel index to the coarse (LR) index of the same place.

    The half-voxel rule. On the grid ``centre`` a coarse voxel covers ``scale`` fine ones
    exactly, so the outer faces of the volume coincide: fine index j lies at coarse index
    ``(j + 1/2) / scale - 1/2``. On the grid ``kspace`` (truncated or zero-filled spectra) the
    first samples coincide: fine j lies at coarse ``j / scale``. The slice axis is untouched.

    >>> (fine_to_coarse(2, 2, "centre") @ [0, 1, 7, 1]).tolist()
    [-0.25, 0.25, 7.0, 1.0]
    >>> (fine_to_coarse(2, 2, "kspace") @ [0, 1, 7, 1]).tolist()
    [0.0, 0.5, 7.0, 1.0]
    """
    if grid not in ("centre", "kspace"):
        raise ValueError(f"grid must be 'centre' or 'kspace', got {grid!r}")
    matrix = np.eye(4)
    for in_plane in in_plane_axes(axis):
        matrix[in_plane, in_plane] = 1 / scale
        if grid == "centre":
            matrix[in_plane, 3] = 0.5 / scale - 0.5
    return matrix


def upscaled_affine(affine: Affine, scale: int, axis: int, grid: Grid) -> Affine:
    """Affine of the volume made ``scale`` times finer in-plane.

    >>> upscaled_affine(np.eye(4), 2, 2, "centre")[:3, 3].tolist()
    [-0.25, -0.25, 0.0]
    """
    return np.asarray(affine, np.float64) @ fine_to_coarse(scale, axis, grid)


def downscaled_affine(affine: Affine, scale: int, axis: int, grid: Grid) -> Affine:
    """Affine of the volume made ``scale`` times coarser in-plane; undoes `upscaled_affine`.

    >>> coarse = downscaled_affine(np.eye(4), 4, 2, "centre")
    >>> coarse[:3, 3].tolist()
    [1.5, 1.5, 0.0]
    >>> np.allclose(upscaled_affine(coarse, 4, 2, "centre"), np.eye(4), atol=1e-15)
    True
    """
    return np.asarray(affine, np.float64) @ np.linalg.inv(fine_to_coarse(scale, axis, grid))


def upscaled_shape(shape: Sequence[int], scale: int, axis: int) -> tuple[int, ...]:
    """Shape after in-plane super-resolution; 2D stays 2D, further axes (time) are kept.

    >>> upscaled_shape((144, 160, 12, 3), 2, 2)
    (288, 320, 12, 3)
    >>> upscaled_shape((144, 160), 4, 2)
    (576, 640)
    """
    in_plane = in_plane_axes(axis)
    return tuple(n * scale if i in in_plane else n for i, n in enumerate(shape))


def corners(affine: Affine, shape: Sequence[int]) -> NDArray[np.float64]:
    """The eight outer corners of the field of view, (8, 3), half a voxel beyond the centres.

    >>> corners(np.eye(4), (2, 2, 2)).min(axis=0).tolist()
    [-0.5, -0.5, -0.5]
    """
    index = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in spatial_shape(shape)], indexing="ij"))
    index = index.reshape(3, 8)  # (3, 2, 2, 2) -> (3, 8)
    matrix = np.asarray(affine, np.float64)
    return np.asarray((matrix[:3, :3] @ index).T + matrix[:3, 3])
