"""What a scan is called breaks no line of a training or an evaluation, and colours none."""

import shutil

import nibabel as nib
import numpy as np
import pytest

from poan_train import evaluate
from tests.train.quick import QUICK, run


@pytest.mark.parametrize("kinds", [["bicubic"], ["snr30"]])
def test_a_name_cannot_break_a_line_or_colour_it(kinds, scan_folder, tmp_path, capsys):
    shutil.move(scan_folder / "sub-2_T2w.nii.gz", scan_folder / "sub-\x1b[31m2\n_T2w.nii.gz")
    air = nib.Nifti1Image(np.zeros((40, 44, 5), np.int16), np.diag([1.0, 1.0, 4.0, 1.0]))
    out = tmp_path / "a.pt"
    assert run("--data", scan_folder, "--out", out, *QUICK, "--steps", 1, "--val-share", 0) == 0
    nib.save(air, scan_folder / "sub-\x1b[32m4_T2w.nii")
    arguments = ["--ckpt", str(out), "--data", str(scan_folder), "--every", "4"]
    assert evaluate.main([*arguments, "--lr-model", *kinds]) == 0
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    assert said.out.count(r"sub-\x1b[31m2\n") == 2  # who trains, and a row of the table
    assert r"sub-\x1b[32m4_T2w.nii: nothing but background, left out" in said.err


def test_the_table_of_whole_slices_has_a_line_for_each_volume():
    means = dict.fromkeys(evaluate.MEASURES, 1.0)
    row = {"volume": "a\n\x1b[31mb.nii", "bicubic": means, "sr": means}
    caption, _, line = evaluate.table([row], "slice-peak").splitlines()
    assert caption == "PSNR slice-peak in dB / SSIM volume-peak; gain over bicubic"
    assert line.startswith(r"a\n\x1b[31mb.nii ")
