"""The picture shows voxels in their physical shape."""

from pathlib import Path

import numpy as np
from PIL import Image

from poan_runtime.report.preview import CAPTION, PANEL, write_preview


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
