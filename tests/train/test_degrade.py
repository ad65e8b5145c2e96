import numpy as np
import pytest
from PIL import Image

from poan_runtime.geometry import upscaled_affine
from poan_train.degrade import (
    GRID,
    crop_to_multiple,
    degrade,
    fourier_resize,
)

SCALES = (2, 3, 4)


@pytest.mark.parametrize("scale", SCALES)
def test_bicubic_is_pillows_antialiased_bicubic_away_from_the_border(scale):
    hr = np.random.default_rng(0).random((24 * scale, 20 * scale)).astype(np.float32)
    ours = degrade(hr, scale, "bicubic")
    theirs = np.asarray(Image.fromarray(hr).resize((20, 24), Image.Resampling.BICUBIC))
    # Pillow drops taps outside the image where MATLAB mirrors them: two LR voxels at each border
    # differ. Inside, both are float32 sums of at most 16 x 16 products.
    assert np.abs(ours - theirs)[2:-2, 2:-2].max() <= 2e-6
    assert np.abs(ours - theirs)[:2].max() > 1e-3


@pytest.mark.parametrize("scale", SCALES)
def test_bicubic_mirrors_the_image_at_its_border_as_matlab_does(scale):
    hr = np.random.default_rng(0).random((6 * scale, 6 * scale)).astype(np.float32)
    mirrored = np.pad(hr, 3 * scale, mode="symmetric")
    inside = degrade(mirrored, scale, "bicubic")[3:-3, 3:-3]
    assert np.abs(degrade(hr, scale, "bicubic") - inside).max() <= 1e-6


def band_limited(shape, points, highest=3):
    """A sum of waves of at most ``highest`` periods per field of view, at given positions."""
    rng = np.random.default_rng(7)
    y, x = points
    image = np.zeros(np.broadcast(y, x).shape)
    for _ in range(12):
        fy, fx = rng.integers(-highest, highest + 1, 2)
        image += rng.normal() * np.cos(
            2 * np.pi * (fy * y / shape[0] + fx * x / shape[1]) + rng.uniform(0, 6)
        )
    return image


@pytest.mark.parametrize(
    ("method", "share"), [("kspace", 0.0), ("truncated", 0.5), ("scanner", 0.5)]
)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("lr_shape", [(8, 10), (9, 7)])
def test_k_space_truncation_samples_a_band_limited_phantom_on_its_grid(
    scale, lr_shape, method, share
):
    shape = tuple(scale * n for n in lr_shape)
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    hr = band_limited(shape, (y, x))
    first = share * (scale - 1)  # HR index of LR sample 0
    points = (y[::scale, ::scale] + first, x[::scale, ::scale] + first)
    expected = band_limited(shape, points)  # no amplitude, no shift
    # float32 of values up to 10
    assert np.abs(degrade(hr, scale, method) - expected).max() <= 1e-6 * np.abs(hr).max()


@pytest.mark.parametrize("method", GRID)
@pytest.mark.parametrize("scale", SCALES)
def test_a_constant_stays_itself(method, scale):
    lr = degrade(np.full((4 * scale, 6 * scale), 7.0), scale, method)
    assert lr == pytest.approx(np.full((4, 6), 7.0), rel=1e-6)


@pytest.mark.parametrize("method", GRID)
@pytest.mark.parametrize("scale", SCALES)
def test_a_blobs_centroid_in_mm_survives_degradation(method, scale):
    lr_shape = np.array([20, 24])
    y, x = np.mgrid[: scale * 20, : scale * 24].astype(float)
    centre, width = np.array([9.3, 11.8]) * scale, 2.0 * scale
    hr = np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / (2 * width**2))
    lr = degrade(hr, scale, method).astype(np.float64)
    index = np.indices(tuple(lr_shape))
    lr_centroid = np.array([(axis * lr).sum() / lr.sum() for axis in index])
    lr_affine = np.diag([1.0, 1.0, 3.0, 1.0])
    hr_affine = upscaled_affine(lr_affine, scale, 2, GRID[method])
    in_mm = (hr_affine @ [*centre, 0, 1])[:2]
    # 1e-3 LR voxel: the blob's tails that the border cuts off
    assert lr_centroid == pytest.approx(in_mm, abs=1e-3)
    wrong = upscaled_affine(lr_affine, scale, 2, "kspace" if GRID[method] == "centre" else "centre")
    assert np.abs((wrong @ [*centre, 0, 1])[:2] - lr_centroid).max() > 0.2


def test_sizes_that_are_no_multiple_are_cropped_or_refused():
    assert crop_to_multiple(np.zeros((2, 11, 9)), 4).shape == (2, 8, 8)
    with pytest.raises(ValueError, match="11x9 is no multiple of 4"):
        degrade(np.zeros((11, 9)), 4, "bicubic")
    with pytest.raises(ValueError, match="smaller than x4"):
        crop_to_multiple(np.zeros((3, 9)), 4)


def test_a_method_that_degrade_does_not_know_is_refused(monkeypatch):
    monkeypatch.setitem(GRID, "spiral", "centre")  # a grid alone does not make LR
    with pytest.raises(ValueError, match="spiral: no such method; there are bicubic, scanner"):
        degrade(np.zeros((8, 8)), 2, "spiral")


def test_fourier_resize_refuses_to_enlarge():
    with pytest.raises(ValueError, match="8 samples to 9"):
        fourier_resize(np.ones((8, 8)), (9, 8))
