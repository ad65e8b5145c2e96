"""Fig. 3 from rows that paper_tables made."""

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import figure3
from benchmarks.paper_tables import __main__ as tables
from poan_train import networks
from poan_train.metrics import psnr


@pytest.fixture
def rows(scan_folder, tmp_path, monkeypatch):
    """Bicubic and a tiny poan-lite with its ensemble at x4, one step each."""
    for name, value in {"channels": 4, "blocks": 1, "poab_after": 1, "embedding": 2}.items():
        monkeypatch.setitem(networks.LITE, name, value)
    out = tmp_path / "tables"
    val = tmp_path / "val"
    val.mkdir()
    for path in scan_folder.glob("*T2*"):
        (val / path.name.replace("sub-", "sub-val")).symlink_to(path)
    command = ["--data", scan_folder, "--val", val, "--out", out, "--tables", 1, "--steps", 1]
    command += ["--arch", "bicubic", "poan-lite", "poan-lite+", "--contrast", "T2", "--scale", 4]
    quick = ["--batch", "1", "--patch", "8", "--precision", "fp32", "--val-share", "0.5"]
    assert tables.main([*map(str, [*command, "--tile", 0]), "--", *quick]) == 0
    return out, val


def test_the_methods_stand_in_the_papers_order_and_bicubics_slice_is_bicubic(rows, capsys):
    out, val = rows
    args = figure3.parser().parse_args(["--rows", str(out), "--val", str(val)])
    found = figure3.panels(args, "T2")
    assert list(found) == ["HR", "bicubic", "poan-lite", "poan-lite+"]
    row = json.loads((out / "rows/table1_T2_x4_bicubic_seed0.json").read_text())
    assert {image.shape for image in found.values()} == {found["HR"].shape}
    best = psnr(found["HR"][None], found["bicubic"][None])
    assert 5 < best < 60
    assert row["row"]["label"] in found
    command = ["--rows", out, "--val", val, "--contrast", "T2", "--crop", 16]
    assert figure3.main([*map(str, command)]) == 0
    with Image.open(out / "figure3_x4.png") as picture:
        assert picture.width > 4 * 200
    for path in (out / "checkpoints").glob("*.pt"):
        path.unlink()
    assert figure3.main([*map(str, command)]) == 2
    assert "is gone; make the row again" in capsys.readouterr().err


def test_the_crop_is_where_the_edges_are():
    hr = np.zeros((64, 80))
    hr[40:56, 48:64] = np.random.default_rng(0).random((16, 16))
    assert figure3.busiest(hr, 16) == (40, 48)


def test_a_scale_without_rows_is_one_line(rows, capsys):
    out, val = rows
    command = ["--rows", out, "--val", val, "--contrast", "T2", "--scale", 2]
    assert figure3.main([*map(str, command)]) == 2
    assert "no row of Table 1 on T2 x2" in capsys.readouterr().err
