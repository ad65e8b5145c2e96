"""Tiles of air: which they are, what stands in for the network's answer, what else changes."""

import math

import numpy as np
import pytest

from poan_runtime.tiles.air import NO_AIR, Air, bicubic, interpolated, which_are_air
from poan_runtime.tiles.run import SliceRunner, Timings
from poan_train.resample import cubic_matrix
from tests.runtime.tiles.test_run import Blur, plan

AIR = Air(most=10.0)


def noise(shape: tuple[int, ...], sigma: float = 1.0) -> np.ndarray:
    """Magnitude of complex noise: what air looks like."""
    real, imaginary = np.random.default_rng(5).normal(0, sigma, (2, *shape))
    return np.hypot(real, imaginary).astype(np.float32)


def runner(slab: np.ndarray, *, skip: bool = True, scale: int = 2, overlap: int = 2) -> SliceRunner:
    layout = plan(slab.shape, tile=8, scale=scale, overlap=overlap)
    return SliceRunner(backend=Blur(scale), layout=layout, skip=skip, timings=Timings())


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_air_is_interpolated_by_the_bicubic_matrix_of_training(scale: int) -> None:
    np.testing.assert_allclose(bicubic(9, scale), cubic_matrix(9, 9 * scale), atol=1e-7)
    tile = noise((9, 9))
    expected = cubic_matrix(9, 9 * scale) @ tile @ cubic_matrix(9, 9 * scale).T
    np.testing.assert_allclose(interpolated(tile, scale), expected, atol=1e-5)


def test_one_voxel_above_the_floor_on_either_side_of_zero_makes_a_tile_run() -> None:
    tiles = np.repeat(noise((1, 8, 8)), 4, axis=0)
    tiles[1, 3, 4] = 11.0
    tiles[2, 7, 7] = -11.0
    assert which_are_air(tiles, 1.0, AIR).tolist() == [True, False, False, True]
    assert which_are_air(tiles / 5, 5.0, AIR).tolist() == [True, False, False, True]


def test_faint_tissue_that_no_voxel_shows_lifts_the_mean() -> None:
    faint = np.hypot(1.5 + np.random.default_rng(1).normal(size=(8, 8)), noise((8, 8)))
    tiles = np.stack([noise((8, 8)), faint.astype(np.float32)])
    assert tiles.max() < 6
    assert which_are_air(tiles, 1.0, Air(6.0, mean=1.5)).tolist() == [True, False]
    assert which_are_air(tiles, 1.0, Air(6.0)).tolist() == [True, True]


def test_only_voxels_that_lie_in_a_tile_of_air_change() -> None:
    slab = noise((2, 32, 32))
    slab[:, 20:, 20:] += 100
    with_air, without = runner(slab), runner(slab)
    got, whole = with_air.run(slab, 3.0, AIR), without.run(slab, 3.0)
    tiles = with_air.tiles(slab, 3.0, AIR)
    starts = with_air.layout.rows.starts
    in_air = np.zeros(got.shape, bool)
    for (index, row, column), runs in zip(tiles.places, tiles.to_run, strict=True):
        top, left = 2 * starts[row], 2 * starts[column]
        in_air[index, top : top + 16, left : left + 16] |= not runs
    assert 0 < in_air.mean() < 1
    np.testing.assert_array_equal(got[~in_air], whole[~in_air])
    assert (got[in_air] != whole[in_air]).any()
    assert with_air.timings.tiles_of_air == np.count_nonzero(~tiles.to_run) > 0
    assert with_air.timings.tiles_run + with_air.timings.tiles_of_air == without.timings.tiles_run


def test_a_voxel_in_air_alone_is_the_interpolation() -> None:
    slab = noise((1, 8, 8))
    air = runner(slab)
    (got,) = air.run(slab, 2.0, AIR)
    np.testing.assert_allclose(got, interpolated(slab[0], 2), rtol=1e-5)
    assert (air.timings.tiles_run, air.timings.tiles_of_air) == (0, 1)
    assert air.timings.tiles_in_words == "0 tiles run, 1 skipped, all air"


def test_a_constant_tile_below_the_floor_keeps_the_answer_of_the_network() -> None:
    slab = np.full((2, 16, 16), 0.5, np.float32)
    air = runner(slab)
    assert air.run(slab, 1.0, AIR).tobytes() == runner(slab).run(slab, 1.0).tobytes()
    assert (air.timings.tiles_of_air, air.timings.tiles_run) == (0, 1)


@pytest.mark.parametrize(("skip", "air"), [(False, AIR), (True, NO_AIR)])
def test_air_runs_where_nothing_is_to_be_skipped(skip: bool, air: Air) -> None:
    slab = noise((1, 16, 16))
    every = runner(slab, skip=skip)
    assert every.run(slab, 1.0, air).tobytes() == runner(slab).run(slab, 1.0).tobytes()
    assert every.timings.tiles_skipped == 0


def test_counting_foresees_the_tiles_of_air() -> None:
    slab = noise((3, 20, 20))
    slab[1] += 50
    ran = runner(slab)
    ran.run(slab, 2.0, AIR)
    counted = runner(slab).count(slab, 2.0, AIR)
    assert np.count_nonzero(counted.to_run) == ran.timings.tiles_run
    assert 0 < ran.timings.tiles_run < len(counted.places)


def test_nothing_is_air_by_default() -> None:
    assert which_are_air(np.zeros((1, 4, 4), np.float32), 1.0, NO_AIR).tolist() == [False]
    assert math.isinf(AIR.mean)
