"""Slices cut into tiles of one size, and put together again with weights that sum to one.

A tile has three parts along each axis: the *halo*, a border that is thrown away because the
network saw nothing beyond it (except at the edge of the slice, where there is nothing); the
*overlap*, which neighbours share and blend; and the rest, which is its own. All lengths are
LR voxels unless named ``hr_``.
"""

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

SLAB_BYTES = 1 << 23
"""Bytes of HR float32 that a slab of slices may take (one slice may take more).

A few slabs to a scan: memory stays flat, and one is read and one written while one is run."""


def tile_starts(extent: int, tile: int, overlap: int) -> list[int]:
    """Start of each tile along one axis, in LR voxels.

    The last tile moves back to end at ``extent``, so tiles cover every voxel and none leaves
    the slice. ``overlap`` is what neighbours share, halos included.

    >>> tile_starts(10, tile=4, overlap=1)
    [0, 3, 6]
    >>> tile_starts(11, tile=4, overlap=1)
    [0, 3, 6, 7]
    """
    if not 0 <= overlap < tile <= extent:
        raise ValueError(f"need 0 <= overlap < tile <= extent, got {overlap=}, {tile=}, {extent=}")
    return [*range(0, extent - tile, tile - overlap), extent - tile]


def reflected_index(extent: int, tile: int) -> NDArray[np.intp]:
    """Which voxel stands at each of the ``max(extent, tile)`` places along a padded axis.

    Reflection without repeating the edge, repeated as often as it takes, half on either side;
    a single voxel repeats itself.

    >>> reflected_index(3, 8).tolist()
    [2, 1, 0, 1, 2, 1, 0, 1]
    >>> reflected_index(1, 3).tolist()
    [0, 0, 0]
    """
    padded = max(extent, tile)
    place = np.arange(padded) - (padded - extent) // 2
    if extent == 1:
        return np.zeros(padded, np.intp)
    period = 2 * (extent - 1)
    place = np.abs(place) % period
    return np.minimum(place, period - place).astype(np.intp)


def blend_weights(
    starts: list[int], extent: int, tile: int, halo: int, overlap: int, scale: int
) -> NDArray[np.float32]:
    """Weight of each HR voxel of each tile along one axis, (tiles, scale * tile).

    Zero in a halo that faces a neighbour, then a linear ramp over the overlap, then one;
    divided by the sum over all tiles, so that the weights of every HR voxel sum to one.

    >>> blend_weights([0, 1], 5, tile=4, halo=0, overlap=3, scale=1).tolist()
    [[1.0, 0.75, 0.5, 0.25], [0.25, 0.5, 0.75, 1.0]]
    """
    hr_tile, hr_halo, hr_ramp = scale * tile, scale * halo, scale * overlap + 1
    place = np.arange(hr_tile)
    rising = np.clip((place - hr_halo + 1) / hr_ramp, 0, 1)
    total = np.zeros(scale * extent)
    profiles = []
    for index, start in enumerate(starts):
        profile = np.ones(hr_tile)
        if index > 0:
            profile *= rising
        if index < len(starts) - 1:
            profile *= rising[::-1]
        total[scale * start : scale * start + hr_tile] += profile
        profiles.append(profile)
    return np.stack(
        [
            profile / total[scale * start : scale * start + hr_tile]
            for start, profile in zip(starts, profiles, strict=True)
        ]
    ).astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axis:
    """Tiles along one axis of a slice, which may be padded to hold one tile."""

    extent: int
    index: NDArray[np.intp]
    starts: list[int]
    weights: NDArray[np.float32]
    overlap: int

    @property
    def before(self) -> int:
        """Voxels of padding before the first one."""
        return (len(self.index) - self.extent) // 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How slices of one size run through a network: tiles, batch and slices per slab."""

    tile: int
    scale: int
    halo: int
    overlap: int
    rows: Axis
    columns: Axis
    batch: int
    slab: int

    @property
    def tiles_per_slice(self) -> int:
        """Tiles that cover one slice."""
        return len(self.rows.starts) * len(self.columns.starts)


def cheapest_overlap(extent: int, tile: int, halo: int, overlap: int, least: int) -> int:
    """The overlap, of ``least`` to ``overlap``, that needs fewest tiles; the largest of these.

    A slice just too long for n tiles would otherwise pay for n + 1: 120 voxels take two tiles of
    64 that blend over 4 voxels, but three that blend over 6, that is 4 and 9 tiles per slice.

    >>> cheapest_overlap(120, tile=64, halo=2, overlap=6, least=3)
    4
    >>> cheapest_overlap(240, tile=64, halo=2, overlap=6, least=3)
    6
    """
    if not 0 <= least <= overlap:
        raise ValueError(f"need 0 <= least <= overlap, got {least=}, {overlap=}")

    def tiles(candidate: int) -> int:
        return len(tile_starts(max(extent, tile), tile, 2 * halo + candidate))

    return min(range(overlap, least - 1, -1), key=tiles)


def least_overlap_of(overlap: int) -> int:
    """What an overlap may shrink to where nobody asked for it exactly: half of it."""
    return math.ceil(overlap / 2)


def lay_out_axis(
    extent: int, tile: int, halo: int, overlap: int, scale: int, least_overlap: int | None = None
) -> Axis:
    """Fewest tiles along an axis that leave ``halo`` and the overlap between them.

    The overlap is ``overlap``, or as little as ``least_overlap`` where that saves a tile.
    """
    index = reflected_index(extent, tile)
    if least_overlap is not None:
        overlap = cheapest_overlap(extent, tile, halo, overlap, least_overlap)
    starts = tile_starts(len(index), tile, 2 * halo + overlap)
    weights = blend_weights(starts, len(index), tile, halo, overlap, scale)
    return Axis(extent=extent, index=index, starts=starts, weights=weights, overlap=overlap)


def lay_out(
    height: int,
    width: int,
    slices: int,
    *,
    tile: int,
    scale: int,
    halo: int,
    overlap: int,
    batch: int | None,
    best_batch: int,
    most_batch: int,
    least_overlap: int | None = None,
) -> Layout:
    """The cheapest layout: fewest tiles, then fewest calls of about the best batch size.

    The overlap along an axis may shrink to ``least_overlap`` where that saves a tile (None: to
    half of ``overlap``). Tiles of several slices share a batch. ``batch`` overrides the choice.
    A slab holds as many slices as `SLAB_BYTES` allow, in near-equal parts: batches
    that are not full, one at each slab's end, are few, and the last slab is no stub.
    """
    least = least_overlap_of(overlap) if least_overlap is None else least_overlap
    rows = lay_out_axis(height, tile, halo, overlap, scale, least)
    columns = lay_out_axis(width, tile, halo, overlap, scale, least)
    hr_slice_bytes = 4 * len(rows.index) * len(columns.index) * scale**2
    slabs = math.ceil(slices / max(1, SLAB_BYTES // hr_slice_bytes))
    slab = math.ceil(slices / slabs)
    tiles = slab * len(rows.starts) * len(columns.starts)
    if batch is None:
        calls = math.ceil(tiles / min(best_batch, most_batch))
        batch = math.ceil(tiles / calls)
    return Layout(
        tile=tile,
        scale=scale,
        halo=halo,
        overlap=overlap,
        rows=rows,
        columns=columns,
        batch=batch,
        slab=slab,
    )
