import numpy as np
import pytest

from poan_train.classical import CLASSICAL, NLMConfig, make_consistent, nlm
from poan_train.degrade import degrade
from poan_train.evaluate import bicubic
from poan_train.metrics import psnr


def shapes(n=48):
    """One slice of discs with sharp edges, which repeat themselves."""
    y, x = np.mgrid[:n, :n]
    hr = np.full((1, n, n), 0.2, np.float32)
    for i, (cy, cx) in enumerate([(12, 12), (12, 34), (34, 12), (34, 34)]):
        hr[0][(y - cy) ** 2 + (x - cx) ** 2 < 64] = 0.5 + 0.1 * i
    return hr


@pytest.mark.parametrize("method", ["bicubic", "kspace"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_non_local_means_beats_bicubic_on_shapes_that_repeat(scale, method):
    hr = shapes()
    lr = degrade(hr, scale, method)
    sr = nlm(lr, scale, method)
    assert sr.shape == hr.shape
    assert sr.dtype == np.float32
    # measured: 1.7 to 5 dB; half of the least leaves room for another release of the filter
    assert psnr(hr, sr) > psnr(hr, CLASSICAL["bicubic"](lr, scale, method)) + 0.85


def test_bicubic_is_the_interpolation_of_the_evaluation():
    lr = np.random.default_rng(0).random((2, 6, 7))
    assert np.array_equal(CLASSICAL["bicubic"](lr, 2, "kspace"), bicubic(lr, 2, "kspace"))


def test_after_the_published_correction_block_means_are_the_lr_image():
    rng = np.random.default_rng(0)
    lr, x = rng.random((5, 4)), rng.random((15, 12))
    fixed = make_consistent(x, lr, 3, "bicubic", "mean")
    assert np.allclose(fixed.reshape(5, 3, 4, 3).mean(axis=(1, 3)), lr, rtol=0, atol=1e-14)
    again = make_consistent(fixed, lr, 3, "bicubic", "mean")
    assert np.allclose(again, fixed, rtol=0, atol=1e-14)


@pytest.mark.parametrize("method", ["bicubic", "kspace"])
def test_back_projection_brings_the_degraded_estimate_nearer_to_the_lr_image(method):
    hr = shapes()
    lr = degrade(hr, 2, method)[0]
    x = bicubic(lr[None], 2, "centre" if method == "bicubic" else "kspace")[0]
    rest = [np.abs(degrade(x, 2, method) - lr).max()]
    for _ in range(3):
        x = make_consistent(x, lr, 2, method)
        rest.append(np.abs(degrade(x, 2, method) - lr).max())
    assert rest[3] < 0.3 * rest[0]
    assert rest == sorted(rest, reverse=True)


@pytest.mark.parametrize("consistency", ["degradation", "mean"])
def test_a_constant_slice_stays_itself(consistency):
    sr = nlm(np.full((2, 8, 9), 0.7), 2, "bicubic", NLMConfig(consistency=consistency))
    assert np.allclose(sr, 0.7, rtol=0, atol=1e-6)  # float32


def test_the_result_scales_with_the_intensity():
    lr = degrade(shapes(), 2, "bicubic")
    a, b = nlm(lr, 2, "bicubic"), nlm(1000 * lr, 2, "bicubic")
    # float32 rounding inside the filter, over a dozen steps
    assert np.abs(b / 1000 - a).max() <= 1e-3 * a.max()
