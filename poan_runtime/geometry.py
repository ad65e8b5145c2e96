"""Where voxels lie: slice axis, in-plane axes and the half-voxel rule, stated once.

Arrays stay in the file's voxel order. An *affine* is (4, 4) float64 and maps a voxel index
(i, j, k) to RAS+ millimetres (or the unit that the header names). Super-resolution is
in-plane only: the slice axis keeps its extent and its spacing.
"""

import dataclasses
import math
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


def _same_field(fine: tuple[int, int], coarse: tuple[int, int], axis: int) -> Affine:
    """Matrix (4, 4) from an index of one matrix to that of another over the same field of view."""
    matrix = np.eye(4)
    for in_plane, m, n in zip(in_plane_axes(axis), fine, coarse, strict=True):
        matrix[in_plane, in_plane] = n / m
        matrix[in_plane, 3] = (n / m - 1) / 2
    return matrix


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Geometry:
    """Where the voxels of a run lie, derived once by `derive` and handed on.

    ``shape`` (2 to 7 axes) and ``affine`` are those of the LR volumes that the network sees,
    ``axis`` the voxel axis that slices are stacked across, ``grid`` the half-voxel rule by which
    ``scale`` makes them finer. ``fine_to_stored`` maps a fine voxel index to the index of the same
    place in the file (4, 4): a header is refined by it. It differs from the rule alone only
    where the LR volumes are not the stored ones. ``to_coarse`` maps it to an LR voxel index.
    ``fine_plane`` are rows and columns of an SR slice.
    """

    shape: tuple[int, ...]
    affine: Affine
    axis: int
    scale: int
    grid: Grid
    fine_to_stored: Affine
    to_coarse: Affine
    fine_plane: tuple[int, int]

    @classmethod
    def derive(
        cls,
        shape: Sequence[int],
        affine: Affine,
        *,
        scale: int,
        grid: Grid,
        axis: str | int | None = None,
        lr_to_stored: Affine | None = None,
        fine_plane: tuple[int, int] | None = None,
    ) -> "Geometry":
        """The geometry of a source; ``axis`` as in `slice_axis`.

        ``lr_to_stored`` (4, 4) maps an LR voxel index to the stored one where a stage between
        the file and the network changed the matrix; None: they are the same. ``fine_plane`` is
        the matrix that SR slices are brought to after the network, over the same field of view;
        None: ``scale`` times LR's.

        >>> g = Geometry.derive((144, 160, 12, 3), np.diag([1, 1, 5, 1]), scale=2, grid="centre")
        >>> g.axis, g.slices, g.plane, g.volumes, g.fine_shape
        (2, 12, (144, 160), 3, (288, 320, 12, 3))
        """
        found = slice_axis(affine, shape, axis)
        finer = fine_to_coarse(scale, found, grid)
        h, w = (spatial_shape(shape)[i] for i in in_plane_axes(found))
        if fine_plane is not None:
            finer = _same_field(fine_plane, (h, w), found)
        return cls(
            shape=tuple(shape),
            affine=np.asarray(affine, np.float64),
            axis=found,
            scale=scale,
            grid=grid,
            fine_to_stored=finer if lr_to_stored is None else np.asarray(lr_to_stored) @ finer,
            to_coarse=finer,
            fine_plane=fine_plane or (scale * h, scale * w),
        )

    @property
    def spatial(self) -> tuple[int, int, int]:
        """The three LR extents; the third is 1 for a 2D image."""
        return spatial_shape(self.shape)

    @property
    def slices(self) -> int:
        """Slices of one volume, LR and SR alike."""
        return self.spatial[self.axis]

    @property
    def plane(self) -> tuple[int, int]:
        """Rows and columns of an LR slice (h, w)."""
        first, second = in_plane_axes(self.axis)
        return self.spatial[first], self.spatial[second]

    @property
    def volumes(self) -> int:
        """How many 3D volumes there are."""
        return math.prod(self.shape[3:])

    @property
    def fine_shape(self) -> tuple[int, ...]:
        """Shape of the SR volumes, with as many axes as ``shape``."""
        extents = dict(zip(in_plane_axes(self.axis), self.fine_plane, strict=True))
        return tuple(extents.get(i, n) for i, n in enumerate(self.shape))

    @property
    def is_filled_up(self) -> bool:
        """Whether SR slices get another matrix than the network gives them."""
        h, w = self.plane
        return self.fine_plane != (self.scale * h, self.scale * w)

    @property
    def fine_spatial(self) -> tuple[int, int, int]:
        """The three SR extents."""
        return spatial_shape(self.fine_shape)

    @property
    def fine_affine(self) -> Affine:
        """SR voxel index to RAS+ mm, (4, 4)."""
        return self.affine @ self.to_coarse
