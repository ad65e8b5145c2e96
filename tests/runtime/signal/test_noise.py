"""sigma found is sigma made, from air and from the spectrum's corner; the floor of air."""

import numpy as np
import pytest

from poan_runtime.signal.noise import (
    air_floor,
    background,
    corner_sigma,
    false_alarms,
    noise_level,
)
from tests.runtime.signal.phantom import acquire, anatomy

SHAPE = (6, 120, 136)


@pytest.mark.parametrize("sigma", [2.0, 5.0, 10.0])
def test_the_noise_of_air_is_found(sigma: float) -> None:
    noise = noise_level(np.round(10 * acquire(anatomy(SHAPE), SHAPE[1:], sigma=sigma)))
    assert noise.source == "background"
    # hundreds of blocks of 64 voxels: 0.4 % by chance; ringing in the air adds a little
    assert noise.sigma == pytest.approx(10 * sigma, rel=0.04)
    assert noise.background_median == pytest.approx(1.177 * 10 * sigma, rel=0.04)


def test_without_air_the_spectrums_corner_tells() -> None:
    rng = np.random.default_rng(0)
    scan = 100 + 10 * np.sin(np.arange(136) / 9) + rng.normal(0, 3, SHAPE)
    noise = noise_level(scan)
    assert noise.source == "spectrum"
    # the median over some 170 coefficients in each of six slices: 4 % by chance
    assert noise.sigma == pytest.approx(3, rel=0.1)
    assert noise.background_median == 0


def test_voxels_set_to_zero_do_not_thin_the_noise() -> None:
    rng = np.random.default_rng(0)
    scan = 100 + rng.normal(0, 3, SHAPE)
    y, x = np.linspace(-1, 1, SHAPE[1])[:, None], np.linspace(-1, 1, SHAPE[2])
    taper = np.clip((0.5 - np.hypot(y - 0.4, x)) * 4, 0, 1)  # half of the window's energy
    masked = np.where(taper > 0, 100 * taper + (scan - 100), 0)
    # the mask's own edge adds a little; without the count of zeros it would be 0.7
    assert corner_sigma(masked) == pytest.approx(corner_sigma(scan), rel=0.15)


def test_the_corner_holds_noise_and_not_the_structure_of_tissue() -> None:
    rng = np.random.default_rng(0)
    fine = [np.abs(np.fft.fftfreq(n)) * 2 > 0.78 for n in SHAPE[1:]]
    spectrum = np.fft.fft2(rng.normal(0, 30, SHAPE)) * ~np.outer(*fine)
    scan = 100 + np.fft.ifft2(spectrum).real + rng.normal(0, 3, SHAPE)
    # the median over some 170 coefficients in each of six slices: 4 % by chance
    assert corner_sigma(scan) == pytest.approx(3, rel=0.1)


def test_a_strip_of_air_beside_other_noise_is_air_and_sets_sigma() -> None:
    """Air of one block's width; two thirds are as noisy, and four times as bright."""
    rng = np.random.default_rng(0)
    scan = 20 * np.hypot(*rng.normal(0, 1, (2, 6, 128, 128)))
    scan[:, :, 48:] += 300
    scan[:, :, 40:48] = 5 * np.hypot(*rng.normal(0, 1, (2, 6, 128, 8)))
    sigma, median = background(scan.astype(np.float32))
    assert sigma == pytest.approx(5, rel=0.05)
    assert median == pytest.approx(1.177 * 5, rel=0.05)


def test_what_is_too_uneven_or_has_many_zeros_is_no_air() -> None:
    rng = np.random.default_rng(0)
    scan = 100 + rng.normal(0, 3, SHAPE)
    dots, holes = scan.copy(), scan.copy()
    dots[:, :, :40] = rng.exponential(8, (6, 120, 40))
    holes[:, :, ::4] = 0
    for image in (dots, holes):
        assert background(image.astype(np.float32)) is None


def test_noise_times_a_unit_is_that_of_the_scan_times_the_unit() -> None:
    scan = acquire(anatomy(SHAPE), SHAPE[1:], sigma=4.0)
    assert noise_level(scan).times(8.0) == noise_level(8 * scan)


def test_voxels_that_are_not_finite_count_as_zero() -> None:
    holed = 100 + np.random.default_rng(0).normal(0, 3, SHAPE)  # no air
    holed[:, :3, :3] = 0
    spoilt = holed.copy()
    spoilt[:, :3, 0], spoilt[:, :3, 1], spoilt[:, :3, 2] = np.nan, np.inf, -np.inf
    assert noise_level(spoilt) == noise_level(holed)


def test_edges_of_masked_tissue_are_not_taken_for_air() -> None:
    y, x = np.linspace(-1, 1, SHAPE[1])[:, None], np.linspace(-1, 1, SHAPE[2])
    ramp = np.clip((0.9 - np.hypot(y, x)) * 1.5, 0, 1)
    tissue = ramp * np.random.default_rng(3).uniform(0.2, 1.8, SHAPE) * 100
    tissue[tissue < 30] = 0  # a mask cuts off what is dark: its border blocks are dark, not noise
    assert background(tissue.astype(np.float32)) is None
    assert noise_level(tissue).source == "spectrum"


def test_an_empty_or_tiny_scan_has_no_noise() -> None:
    assert noise_level(np.zeros((2, 32, 32))).source == "none"
    assert noise_level(np.zeros((1, 4, 4))).sigma == 0
    assert noise_level(np.ones((1, 3, 3))).source == "none"


def test_air_exceeds_the_floor_as_rarely_as_stated() -> None:
    rng = np.random.default_rng(5)
    air = np.hypot(*rng.normal(0, 7, (2, 4, 256, 256)))
    noise = noise_level(air)
    share = (air > air_floor(noise, 2.0)).mean()
    # 262,144 voxels: 0.0064 +- 0.00016 by chance, and sigma is known to 0.4 %
    assert share == pytest.approx(false_alarms(2.0, 1), rel=0.1)


def test_without_noise_in_the_air_the_floor_is_zero() -> None:
    assert air_floor(noise_level(anatomy(SHAPE)), 4.5) == 0
