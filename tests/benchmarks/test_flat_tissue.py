"""Flat patches are chosen by LR without its noise, and slow shading is no noise."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from benchmarks.flat_tissue import FEWEST, MARGIN, PATCH, alike, deviation, flat_places, interval


def test_patches_beside_an_edge_are_left_for_flat_ones() -> None:
    rng = np.random.default_rng(0)
    lr = np.full((2, 96, 96), 100.0)
    lr[:, :, 60:] = 200  # an edge at column 60
    lr += rng.normal(0, 5, lr.shape)
    places = flat_places(lr.astype(np.float32))
    assert len(places) == FEWEST
    for _, _, x in places:
        assert not x - MARGIN <= 60 < x + PATCH + MARGIN


def test_a_plane_counts_for_nothing_and_noise_in_full() -> None:
    rows, columns = np.indices((16, 16))
    plane = 7.0 + 3 * rows - 2 * columns
    noise = np.random.default_rng(1).normal(0, 2, (16, 16))
    assert deviation(plane) == pytest.approx(0, abs=1e-9)  # float64 least squares
    assert deviation(plane + noise) == pytest.approx(2, rel=0.15)  # of 256 values


def test_noise_is_unlike_its_neighbours_and_a_filter_makes_them_alike() -> None:
    rows, columns = np.indices((8, 8))
    noise = np.random.default_rng(2).normal(0, 2, (200, 8, 8))
    white = [alike(x + 5 * rows - columns) for x in noise]
    smooth = [alike(gaussian_filter(x, 0.7)) for x in noise]
    assert np.mean(white) == pytest.approx(-0.05, abs=0.02)  # 200 patches of 64: 0.006
    assert np.mean(smooth) > 0.3


def test_the_interval_holds_the_ratio_of_patches_that_differ_by_chance_alone() -> None:
    sinc = np.random.default_rng(3).uniform(1, 2, 40)
    network = 0.9 * sinc * np.random.default_rng(4).normal(1, 0.1, 40)
    low, high = interval({"sinc": sinc, "network": network})
    ratio = np.sqrt(np.mean(network**2) / np.mean(sinc**2))
    assert low < ratio < high
    # The error of a mean of 40 ratios with a deviation of 0.1, times 2 on either side.
    assert high - low == pytest.approx(4 * 0.9 * 0.1 / np.sqrt(40), rel=0.3)
