"""Flat patches are chosen by LR without its noise, and slow shading is no noise."""

import numpy as np
import pytest

from benchmarks.flat_tissue import FEWEST, MARGIN, PATCH, deviation, flat_places


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
