"""Tiles cover, weights sum to one, reflection is numpy's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poan_runtime.tiles.layout import (
    SLAB_BYTES,
    cheapest_overlap,
    lay_out,
    lay_out_axis,
    reflected_index,
    tile_starts,
)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, int, int, int, int]:
    """extent, tile, halo, overlap and scale that fit together."""
    tile = draw(st.integers(1, 24))
    halo = draw(st.integers(0, (tile - 1) // 2))
    overlap = draw(st.integers(0, tile - 1 - 2 * halo))
    return draw(st.integers(1, 90)), tile, halo, overlap, draw(st.integers(1, 4))


@given(layouts())
def test_weights_sum_to_one_everywhere(layout: tuple[int, int, int, int, int]) -> None:
    extent, tile, halo, overlap, scale = layout
    axis = lay_out_axis(extent, tile, halo, overlap, scale)
    total = np.zeros(scale * len(axis.index))
    for start, weights in zip(axis.starts, axis.weights, strict=True):
        assert (weights >= 0).all()
        total[scale * start : scale * (start + tile)] += weights
    # Each weight is rounded to float32 once; at most `tile` of them meet in a voxel.
    np.testing.assert_allclose(total, 1, rtol=0, atol=tile * 6e-8)


@given(layouts())
def test_a_halo_that_faces_a_neighbour_has_no_weight(
    layout: tuple[int, int, int, int, int],
) -> None:
    extent, tile, halo, overlap, scale = layout
    axis = lay_out_axis(extent, tile, halo, overlap, scale)
    for index, weights in enumerate(axis.weights):
        if index > 0:
            assert (weights[: scale * halo] == 0).all()
        if index < len(axis.starts) - 1:
            assert (weights[scale * (tile - halo) :] == 0).all()


@given(layouts())
def test_tiles_cover_the_axis_and_stay_inside(layout: tuple[int, int, int, int, int]) -> None:
    extent, tile, halo, overlap, _ = layout
    padded = max(extent, tile)
    starts = tile_starts(padded, tile, 2 * halo + overlap)
    covered = {place for start in starts for place in range(start, start + tile)}
    assert covered == set(range(padded))
    assert starts == sorted(set(starts))


@given(st.integers(1, 12), st.integers(1, 60))
def test_reflection_is_numpys_also_when_it_repeats(extent: int, tile: int) -> None:
    values = np.arange(10, 10 + extent)
    missing = max(tile - extent, 0)
    padding = (missing // 2, missing - missing // 2)
    expected = np.pad(values, padding, mode="reflect") if extent > 1 else np.full(tile, 10)
    assert values[reflected_index(extent, tile)].tolist() == expected.tolist()


@pytest.mark.parametrize(("extent", "tile", "overlap"), [(3, 4, 1), (9, 4, 4), (9, 4, -1)])
def test_tiles_that_do_not_fit_are_refused(extent: int, tile: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="need 0 <= overlap < tile <= extent"):
        tile_starts(extent, tile, overlap)


def test_the_plan_fills_its_batches_and_bounds_its_slabs() -> None:
    sizes = {"tile": 48, "scale": 2, "halo": 2, "overlap": 6, "best_batch": 8, "most_batch": 32}
    plan = lay_out(512, 512, 400, batch=None, **sizes)
    assert (plan.tiles_per_slice, plan.rows.overlap) == (13 * 13, 5)
    assert plan.slab * 4 * 1024**2 <= SLAB_BYTES
    assert plan.batch <= 8
    single = lay_out(60, 48, 1, batch=None, **sizes)
    assert (single.tiles_per_slice, single.batch, single.slab) == (2, 2, 1)
    assert lay_out(60, 48, 1, batch=5, **sizes).batch == 5


@given(layouts(), st.integers(0, 24))
def test_the_overlap_shrinks_only_where_that_saves_a_tile(
    layout: tuple[int, int, int, int, int], smaller: int
) -> None:
    extent, tile, halo, overlap, _ = layout
    least = min(smaller, overlap)
    padded = max(extent, tile)

    def tiles(candidate: int) -> int:
        return len(tile_starts(padded, tile, 2 * halo + candidate))

    chosen = cheapest_overlap(extent, tile, halo, overlap, least)
    assert least <= chosen <= overlap
    assert tiles(chosen) == tiles(least)
    if chosen < overlap:
        assert tiles(chosen) < tiles(chosen + 1)


def test_a_slice_of_the_papers_size_takes_four_tiles_unless_the_overlap_is_given() -> None:
    sizes = {"tile": 64, "scale": 2, "halo": 2, "overlap": 6, "best_batch": 8, "most_batch": 32}
    plan = lay_out(120, 120, 96, batch=None, **sizes)
    assert (plan.tiles_per_slice, plan.rows.starts, plan.rows.overlap) == (4, [0, 56], 4)
    exact = lay_out(120, 120, 96, batch=None, least_overlap=6, **sizes)
    assert (exact.tiles_per_slice, exact.rows.overlap) == (9, 6)
