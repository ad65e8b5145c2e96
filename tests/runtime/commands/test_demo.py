"""The demo: a phantom acquired as a scanner does, its picture and its figures."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from poan_runtime.commands import demo
from poan_runtime.images.volume import read_volume
from poan_runtime.report.preview import GAP, PANEL
from poan_runtime.signal.native import find_native


@pytest.fixture(scope="module")
def truth() -> demo.Volume:
    return 1000 * demo.phantom()


def test_the_phantom_is_acquired_with_the_noise_that_is_stated(truth: demo.Volume) -> None:
    lr = demo.acquired(truth)
    assert (lr.shape, lr.dtype) == ((96, 96, 8), np.int16)
    air = lr[:12, :12].astype(float)  # a corner that the phantom leaves empty
    tissue = np.median(lr[lr > 0.05 * lr.max()])
    # Rayleigh: mean square 2 sigma^2; 1152 voxels give it to 3 %, the ringing there adds some
    assert np.sqrt(np.mean(air**2) / 2) == pytest.approx(tissue / demo.SNR, rel=0.08)


def test_the_phantom_lies_where_its_truth_does(truth: demo.Volume) -> None:
    """On the centre grid the two have the same centre of mass in mm."""

    def centre(volume: demo.Volume, affine: demo.Affine) -> demo.Volume:
        head = np.maximum(volume.astype(np.float64) - 100, 0)  # without the air's noise
        index = [np.sum(g * head) / head.sum() for g in np.indices(volume.shape)]
        return (affine @ [*index, 1])[:2]

    lr = demo.acquired(truth)
    # half an HR voxel, 0.5 mm, is what another grid would move it by
    np.testing.assert_allclose(centre(lr, demo.COARSE), centre(truth, demo.FINE), atol=0.1)


def test_no_line_of_the_phantom_is_taken_for_filled(truth: demo.Volume) -> None:
    """Its ellipses make dips in the spectrum, without noise most of all."""
    assert not find_native(np.moveaxis(demo.acquired(truth), 2, 0)).is_zero_filled
    shrunk = [
        Image.fromarray(image).resize((96, 96), Image.Resampling.BICUBIC) for image in truth.T
    ]
    clean = np.stack([np.rint(np.maximum(np.asarray(image), 0)) for image in shrunk])
    assert find_native(clean).cutoffs == (None, None)


def test_the_demo_shows_sinc_beside_bicubic_and_truth_and_says_what_was_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main(["--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    figures = r"bicubic ([\d.]+) dB, sinc ([\d.]+) dB, poan ([\d.]+) dB .* gain \+([\d.]+) dB"
    found = re.search(figures, said)
    assert found is not None
    known, sinc, ours, gain = map(float, found.groups())
    assert gain == pytest.approx(ours - max(known, sinc), abs=0.011)  # of rounded figures
    assert gain > 1
    share = re.search(r"faithfulness: ([\d.]+)% of what was measured .* noise is ([\d.]+)%", said)
    assert share is not None
    assert 0 < float(share[1]) < 10
    assert float(share[2]) == pytest.approx(3.5, abs=0.5)  # 1 in 30 of tissue, the rms is lower
    truth = read_volume(tmp_path / "phantom_truth.nii.gz")
    sr = read_volume(tmp_path / "phantom_desc-sr.nii.gz")
    assert sr.data.shape == truth.data.shape
    np.testing.assert_allclose(sr.affine, truth.affine, atol=1e-6)  # float32 in the header
    assert demo.psnr(truth.data, sr.data) == pytest.approx(ours, abs=0.006)
    for name, panels in (("phantom.png", 5), ("scan.png", 4)):
        with Image.open(tmp_path / name) as picture:
            assert picture.width == panels * (PANEL + GAP) - GAP
