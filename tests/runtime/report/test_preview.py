"""The picture shows voxels in their physical shape, and every way to interpolate them."""

from pathlib import Path

import numpy as np
from PIL import Image

from poan_runtime.as_measured import resampled
from poan_runtime.report.preview import CAPTION, GAP, PANEL, write_preview
from poan_runtime.signal.kspace import resample


def test_a_coronal_slice_of_thick_slices_is_not_squashed(tmp_path: Path) -> None:
    coarse = np.zeros((40, 12), np.float32)  # x, z of a volume with voxels of 1 x 1 x 5 mm
    coarse[10:30, 4:8] = 1  # 20 mm by 20 mm
    fine = coarse.repeat(2, 0).repeat(2, 1)
    affine = np.diag([1.0, 1.0, 5.0, 1.0])
    write_preview(tmp_path / "p.png", coarse, fine, affine, axis=1)
    picture = np.asarray(Image.open(tmp_path / "p.png"))
    whole = picture[CAPTION : CAPTION + PANEL, :PANEL] > 127
    rows, columns = np.flatnonzero(whole.any(axis=1)), np.flatnonzero(whole.any(axis=0))
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    # a panel has 420 pixels for 60 mm; edges fall between pixels
    assert abs(height - 140) <= 2
    assert abs(width - 140) <= 2


def test_sinc_stands_beside_bicubic_and_is_exact_for_what_lr_can_hold(tmp_path: Path) -> None:
    """The window is LR's, so a wave that LR samples coarsely is the same in sinc and in truth."""
    at = np.arange(64)[:, None] + np.zeros(48)
    wave = np.cos(2 * np.pi * 13 * (at + 0.5) / 64 + 0.5)  # 13 of LR's 16 cycles
    truth = (100 + 50 * wave).astype(np.float32)
    coarse = resample(truth, (32, 24))
    write_preview(tmp_path / "p.png", coarse, truth, np.eye(4), axis=2, truth=truth)
    picture = np.asarray(Image.open(tmp_path / "p.png")).astype(int)
    panels = [picture[CAPTION:, k * (PANEL + GAP) :][:, :PANEL] for k in range(5)]
    assert picture.shape[1] == 5 * (PANEL + GAP) - GAP
    lr, bicubic, sinc, sr, known = panels
    assert np.abs(sinc - known).max() <= 1  # a grey level of rounding
    np.testing.assert_array_equal(sr, known)
    assert np.abs(bicubic - known).max() > 20  # of 255: what bicubic misses of a fast wave
    assert np.abs(lr - known).max() > 20


def test_a_voxel_without_a_value_leaves_the_rest_of_sinc_alone() -> None:
    coarse = np.full((16, 16), 5, np.float32)
    coarse[3, 4] = np.nan
    filled = resampled(coarse, (32, 32))
    assert np.isfinite(filled).all()
    np.testing.assert_allclose(filled[24:], 5, atol=0.5)  # far from the hole its ringing is small
    assert resampled(np.full((8, 8), 3e38, np.float32), (16, 16)).max() > 2.9e38
