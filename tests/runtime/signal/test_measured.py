"""The measured band put back, and the figure of what was changed."""

import numpy as np
import pytest

from poan_runtime.signal.measured import Change, change_of, difference, down, put_back, up

ROUNDING = 5e-6
"""float32 matrices and sums of up to 60 terms of order one: 1e-6 was the most that was seen."""


def pair(scale: int, shape: tuple[int, int, int] = (3, 13, 16)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(scale)
    n, h, w = shape
    return rng.random(shape), rng.random((n, scale * h, scale * w))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_what_is_kept_comes_down_to_lr(scale: int) -> None:
    lr, sr = pair(scale)
    assert np.abs(down(sr, scale) - lr).max() > 0.1
    np.testing.assert_allclose(
        down(put_back(sr, difference(lr, sr, scale), scale), scale), lr, atol=ROUNDING
    )


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_what_lies_above_the_band_of_lr_is_left(scale: int) -> None:
    lr, sr = pair(scale)
    changed = np.fft.fft2(put_back(sr, difference(lr, sr, scale), scale) - sr)
    rows = np.abs(np.fft.fftfreq(sr.shape[1], 1 / sr.shape[1])) > 13 / 2
    columns = np.abs(np.fft.fftfreq(sr.shape[2], 1 / sr.shape[2])) > 16 / 2
    # sums over up to 3,328 voxels of float32 rounding, beside coefficients of up to 300
    assert np.abs(changed[:, rows]).max() < 2e-3
    assert np.abs(changed[:, :, columns]).max() < 2e-3
    assert np.abs(changed).max() > 1


def test_sinc_interpolation_changes_nothing() -> None:
    lr, _ = pair(2)
    assert change_of([(lr, up(lr, 2))], 2).relative < ROUNDING
    sr = up(lr, 2)
    kept = put_back(sr, difference(lr, sr, 2), 2)
    np.testing.assert_allclose(kept, sr, atol=ROUNDING)


def test_the_change_is_that_of_the_whole_scan_however_it_is_cut() -> None:
    lr, sr = pair(2, (5, 12, 12))
    whole = change_of([(lr, sr)], 2)
    slabs = change_of([(lr[:2], sr[:2]), (lr[2:], sr[2:])], 2)
    by_hand = np.linalg.norm(difference(lr, sr, 2)) / np.linalg.norm(lr)
    assert slabs.relative == pytest.approx(whole.relative, rel=1e-6)  # float32 maps
    assert slabs.rms == pytest.approx(whole.rms, rel=1e-6)
    assert whole.relative == pytest.approx(by_hand, rel=1e-5)
    assert whole.rms == pytest.approx(by_hand * np.sqrt((lr**2).mean()), rel=1e-5)


def test_a_tenth_more_signal_is_a_change_of_a_tenth() -> None:
    lr, _ = pair(2)
    assert change_of([(lr, 1.1 * up(lr, 2))], 2).relative == pytest.approx(0.1, abs=1e-5)


def test_an_all_zero_scan_has_no_change() -> None:
    total = Change()
    total.add(np.zeros((1, 4, 4)), np.zeros((1, 4, 4)))
    assert (total.relative, total.rms) == (0.0, 0.0)
    assert Change().rms == 0.0


def test_sr_of_another_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="SR of 9x8 is no multiple of x2"):
        down(np.ones((1, 9, 8)), 2)
