"""The page: it renders in a real browser without a network, and names no patient."""

import base64
import gzip
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from poan_runtime.commands.run import main
from poan_runtime.report import html_page
from poan_runtime.signal.kspace import to_native, zero_fill
from tests.conftest import MakeModel, MakeScan
from tests.runtime.images.dicom.made import program


@pytest.fixture
def page(nearest_x2: Path, make_scan: MakeScan, tmp_path: Path) -> Callable[..., str]:
    """The page of a run on a made scan."""

    def make(model: Path = nearest_x2, shape: tuple[int, ...] = (40, 36, 6), **scan: object) -> str:
        path = make_scan("DOE_JANE.nii.gz", shape=shape, **scan)
        out = [
            "-o",
            str(tmp_path / "fine.nii.gz"),
            "--report",
            str(tmp_path / "out.html"),
            "--overwrite",
        ]
        assert main([str(model), str(path), *out]) == 0
        return (tmp_path / "out.html").read_text()

    return make


def volume(page: str, name: str) -> nib.Nifti1Image:
    """What a script element of the page holds."""
    found = re.search(rf'id="{name}">([^<]*)<', page)
    assert found is not None
    content = gzip.decompress(base64.b64decode(found[1]))
    return nib.Nifti1Image.from_bytes(content)


def test_the_page_holds_input_output_and_map_at_their_places(page: Callable[..., str]) -> None:
    html = page()
    lr, sr, changed = (volume(html, name) for name in ("lr", "sr", "changed"))
    assert (lr.shape, sr.shape, changed.shape) == ((40, 36, 6), (80, 72, 6), (40, 36, 6))
    shown = [np.asarray(v.dataobj).astype(int) for v in (lr, sr)]
    assert np.abs(shown[1][::2, ::2] - shown[0]).max() <= 1  # the unit's division rounds a half
    middle = [np.append((np.array(v.shape) - 1) / 2, 1) for v in (lr, sr)]
    np.testing.assert_allclose(lr.affine @ middle[0], sr.affine @ middle[1], atol=1e-5)  # float32


def test_no_name_of_a_file_is_on_the_page(page: Callable[..., str]) -> None:
    html = page()
    assert "_JANE" not in html  # base64 has no underscore
    assert "fine.nii" not in html


def test_what_a_model_has_no_rule_for_is_absent(
    page: Callable[..., str], make_model: MakeModel
) -> None:
    html = page(make_model(grid="kspace"))
    for word in ("changed", "native, ", "native band", "what was measured", "sinc", 'opacity" min'):
        assert word not in html.split("<script")[0]
    assert 'id="changed"' not in html


def test_the_native_band_is_drawn_where_what_was_measured_ends(page: Callable[..., str]) -> None:
    full = np.random.default_rng(1).integers(1, 900, (96, 96, 4)).astype(np.float32)
    filled = zero_fill(to_native(np.moveaxis(full, 2, 0), (60, 96)), (96, 96))
    for data, mark in (
        (full, "native band: the input"),
        (np.moveaxis(filled, 0, 2), "native, rows"),
    ):
        html = page(shape=data.shape, data=np.rint(np.abs(data)).astype(np.int16))
        assert mark in html


def test_too_large_a_scan_shows_its_middle_and_says_so(
    page: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(html_page, "MOST_VOXELS", 80 * 72 * 4)
    html = page()
    assert "The middle 4 of 6 slices, in 8 bits." in html
    sr = volume(html, "sr")
    assert sr.shape == (80, 72, 4)
    assert sr.affine[2, 3] == 4.0  # the first of them is the second slice, 4 mm up
    assert "The middle" not in page(shape=(40, 36, 3))


def test_the_page_stays_below_its_limit(
    page: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(html_page, "LARGEST_PAGE", 1_460_000)
    html = page(shape=(100, 90, 12))  # noise, which does not pack
    assert len(html) <= 1_460_000
    assert 1 <= volume(html, "sr").shape[2] < 12


def test_another_viewer_than_the_vendored_one_is_refused(
    page: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = tmp_path / "other.js.gz"
    other.write_bytes(gzip.compress(b"alert(1)"))
    monkeypatch.setattr(html_page, "NIIVUE", other)
    with pytest.raises(AssertionError):
        page()


def test_a_page_shows_one_scan(
    nearest_x2: Path, make_scan: MakeScan, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    scans = [str(make_scan(name)) for name in ("a.nii", "b.nii")]
    assert main([str(nearest_x2), *scans, "--report", str(tmp_path / "x.html")]) == 2
    assert "a page shows one scan" in capsys.readouterr().err


@pytest.mark.integration
def test_chromium_renders_it_from_a_file(page: Callable[..., str], tmp_path: Path) -> None:
    x, y, z = np.mgrid[:100, :90, :6]
    ball = ((x - 50) ** 2 + (y - 45) ** 2 < 1200) * (200 + 4 * x) + z
    page(shape=ball.shape, data=ball.astype(np.int16))
    shot, log = browsed(tmp_path / "out.html", tmp_path, "--screenshot=" + str(tmp_path / "s.png"))
    assert "CONSOLE" not in log, log
    assert 'data-state="ready"' in browsed(tmp_path / "out.html", tmp_path, "--dump-dom")[0]
    pixels = np.asarray(Image.open(tmp_path / "s.png").convert("L")).astype(int)
    assert shot == ""
    top, left, right = 300, pixels[:, 20:590], pixels[:, 600:1170]
    for view in (left, right):
        lit = view[top : top + 400]
        assert np.ptp(lit) > 150  # a ball before black
        assert 0.1 < (lit > 60).mean() < 0.9
    assert abs(left[top : top + 400].mean() - right[top : top + 400].mean()) < 6.0  # the same ball


def browsed(page: Path, profile: Path, *options: str) -> tuple[str, str]:
    """(what it prints, its log)."""
    line = [program("chromium"), "--headless=new", "--no-sandbox", "--use-angle=swiftshader"]
    line += [
        "--enable-unsafe-swiftshader",
        "--virtual-time-budget=15000",
        "--window-size=1200,1500",
    ]
    line += [f"--user-data-dir={profile}/profile", "--enable-logging=stderr", *options]
    run = subprocess.run([*line, page.as_uri()], capture_output=True, text=True, timeout=300)
    return run.stdout, run.stderr
