"""Spectra cropped and filled: against a direct sum, there and back, and where it lies in mm."""

import re

import numpy as np
import pytest
from numpy.typing import NDArray

from poan_runtime import geometry
from poan_runtime.signal.kspace import (
    not_below_zero,
    resample,
    resampled_affine,
    to_native,
    zero_fill,
)

SIZES = [(16, 10), (16, 11), (15, 10), (15, 9), (13, 12)]
ROUNDING = 2e-6
"""float32 transforms of up to 40 terms of order one: 5e-7 was the most that was seen."""


def direct(line: NDArray[np.float64], m: int) -> NDArray[np.float64]:
    """Cropped spectrum of a line as a sum over complex coefficients, with the phase ramp."""
    n = len(line)
    out = np.zeros(m, complex)
    for f in range(-(m // 2), m // 2 + 1):
        coefficient = sum(x * np.exp(-2j * np.pi * f * j / n) for j, x in enumerate(line))
        ramp = np.exp(2j * np.pi * f * (n / m - 1) / 2 / n)
        out += coefficient * ramp * np.exp(2j * np.pi * f * np.arange(m) / m) / n
    assert np.abs(out.imag).max() < 1e-12
    return out.real


@pytest.mark.parametrize(("n", "m"), SIZES)
def test_cropping_is_the_truncated_spectrum_with_a_phase_ramp(n: int, m: int) -> None:
    line = np.random.default_rng(n * m).random(n)
    for slices, matrix in ((line[None], (1, m)), (line[:, None], (m, 1))):
        found = resample(slices, matrix).ravel()
        np.testing.assert_allclose(found, direct(line, m), atol=ROUNDING)


def test_an_axis_that_keeps_its_samples_is_left_as_it_is() -> None:
    slices = np.random.default_rng(2).random((8, 12))
    expected = np.stack([direct(column, 6) for column in slices.T], axis=1)
    np.testing.assert_allclose(resample(slices, (6, 12)), expected, atol=ROUNDING)
    np.testing.assert_allclose(resample(slices.T, (12, 6)), expected.T, atol=ROUNDING)


@pytest.mark.parametrize(("n", "m"), SIZES)
def test_slices_filled_and_cropped_back_are_themselves(n: int, m: int) -> None:
    slices = np.random.default_rng(0).random((2, m, m + 1)).astype(np.float32)
    back = to_native(zero_fill(slices, (n, n + 4)), (m, m + 1))
    np.testing.assert_allclose(back, slices, atol=ROUNDING)


@pytest.mark.parametrize("matrix", [(20, 27), (21, 26), (31, 40)])
def test_a_band_limited_phantom_is_exact_at_its_positions_in_mm(matrix: tuple[int, int]) -> None:
    affine = np.array([[0, 0, 3.3, 9], [0.6, 0.1, 0, -30], [-0.1, 0.7, 0, 12], [0, 0, 0, 1]])
    h, w = 33, 40
    low = resampled_affine(affine, (h, w), matrix, axis=2)

    def phantom(voxels: tuple[int, int], at: NDArray[np.float64]) -> NDArray[np.float64]:
        """Eight cycles across the field of view, as a function of a place in mm."""
        index = np.indices((*voxels, 1)).reshape(3, -1)
        mm = at[:3, :3] @ index + at[:3, 3:]
        i, j, _ = np.linalg.solve(affine[:3, :3], mm - affine[:3, 3:])
        wave = np.cos(2 * np.pi * (8 * i / h + 0.1)) * np.sin(2 * np.pi * (7 * j / w + 0.3))
        return np.asarray((3 + wave).reshape(1, *voxels))

    cropped = to_native(phantom((h, w), affine), matrix)
    # a shift of 1e-3 mm would move a wave of 8 cycles in 20 mm by 2.5e-3
    np.testing.assert_allclose(cropped, phantom(matrix, low), atol=1e-5)
    np.testing.assert_allclose(zero_fill(cropped, (h, w)), phantom((h, w), affine), atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_field_of_view_stays_for_any_matrix(axis: int) -> None:
    affine = np.array([[0.9, 0, 0.2, -80], [0, 0.7, 0, 5], [0.1, 0, 4, 40], [0, 0, 0, 1.0]])
    shape = [48, 61, 30]
    rows, columns = geometry.in_plane_axes(axis)
    after = (23, 20)
    low = resampled_affine(affine, (shape[rows], shape[columns]), after, axis)
    low_shape = shape.copy()
    low_shape[rows], low_shape[columns] = after
    np.testing.assert_allclose(
        geometry.corners(low, low_shape), geometry.corners(affine, shape), rtol=0, atol=1e-10
    )


def test_twice_as_fine_is_the_affine_that_the_network_gives() -> None:
    affine = np.diag([0.8, 0.9, 4.0, 1.0])
    np.testing.assert_allclose(
        resampled_affine(affine, (30, 31), (60, 62), 2),
        geometry.upscaled_affine(affine, 2, 2, "centre"),
        atol=1e-12,
    )


def test_amplitude_stays_and_nothing_is_lost_of_a_constant() -> None:
    np.testing.assert_allclose(resample(np.full((1, 12, 9), 7.0), (7, 20)), 7.0, atol=1e-5)


def test_a_slice_without_samples_has_no_spectrum() -> None:
    with pytest.raises(ValueError, match=r"need at least one sample .*\(0, 4\) and \(3, 4\)"):
        resample(np.ones((1, 0, 4)), (3, 4))


def test_slices_come_one_by_one_whatever_their_number() -> None:
    slices = np.random.default_rng(1).random((2, 3, 9, 8)).astype(np.float32)
    found = resample(slices, (6, 12))
    assert found.dtype == np.float32
    assert np.array_equal(found[1, 2], resample(slices[1, 2], (6, 12)))


def test_each_direction_refuses_the_other() -> None:
    for more, fewer in (((9, 8), (8, 7)), ((8, 9), (7, 8))):
        with pytest.raises(ValueError, match=rf"cannot crop .*\(8, 8\) to {re.escape(str(more))}"):
            to_native(np.ones((1, 8, 8)), more)
        with pytest.raises(ValueError, match=rf"cannot fill .*8\) up to {re.escape(str(fewer))}"):
            zero_fill(np.ones((1, 8, 8)), fewer)


def test_ringing_below_zero_is_kept_and_cut_only_where_the_scan_had_none() -> None:
    edge = np.zeros((1, 16, 16), np.float32)
    edge[:, 4:11, 4:11] = 1
    cropped = to_native(edge, (10, 10))
    assert cropped.min() < -0.01
    assert not_below_zero(cropped, like=edge).min() == 0
    assert np.array_equal(not_below_zero(cropped, like=edge - 1), cropped)
    assert not_below_zero(cropped[:0], like=edge[:0]).shape == (0, 10, 10)
