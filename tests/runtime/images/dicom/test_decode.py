"""Every transfer syntax gives the stored integers, or one line with what is missing."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest

from poan_runtime.errors import PoanError
from poan_runtime.images.dicom.read import open_dicom
from tests.runtime.images.dicom.made import MakeSeries, program, write
from tests.runtime.images.dicom.test_read import whole


@pytest.mark.parametrize(
    "syntax",
    [
        pydicom.uid.RLELossless,
        pydicom.uid.JPEG2000Lossless,
        pydicom.uid.JPEGLSLossless,
        pydicom.uid.DeflatedExplicitVRLittleEndian,
        pydicom.uid.ImplicitVRLittleEndian,
    ],
)
def test_every_lossless_syntax_gives_the_same_integers(
    make_series: MakeSeries, syntax: pydicom.uid.UID
) -> None:
    folder = make_series(shape=(64, 64))
    with open_dicom(folder) as source:
        expected = whole(source)
    for file in folder.iterdir():
        ds = pydicom.dcmread(file)
        if syntax.is_encapsulated:
            ds.compress(syntax)
            ds.save_as(file)
        else:
            write(ds, file, syntax)
    with open_dicom(folder) as source:
        assert np.array_equal(whole(source), expected)


@pytest.fixture
def smooth(make_series: MakeSeries) -> Path:
    """A file of 64x64 that packs well."""
    file = make_series(slices=1, shape=(64, 64)) / "000.dcm"
    ds = pydicom.dcmread(file)
    x, y = np.mgrid[:64, :64]
    ds.PixelData = (10 * x + 3 * y).astype("<u2").tobytes()
    ds.save_as(file)
    return file


def as_jpeg(file: Path, *how: str) -> Path:
    """The file compressed by DCMTK."""
    out = file.with_name("jpeg.dcm")
    run = subprocess.run([program("dcmcjpeg"), *how, file, out], capture_output=True)
    assert run.returncode == 0, run.stderr
    return out


@pytest.mark.parametrize("process", ["+e1", "+el"])
def test_lossless_jpeg_gives_the_same_integers(smooth: Path, process: str) -> None:
    with open_dicom(smooth) as source:
        expected = whole(source)
    with open_dicom(as_jpeg(smooth, process)) as source:
        assert np.array_equal(whole(source), expected)


def test_baseline_jpeg_gives_what_another_decoder_gives(smooth: Path) -> None:
    ds = pydicom.dcmread(smooth)
    ds.PixelData = (ds.pixel_array // 4).astype("u1").tobytes()
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    ds["PixelData"].VR = "OB"
    coded = as_jpeg(write(ds, smooth), "+eb")
    plain = smooth.with_name("decoded.dcm")
    assert subprocess.run([program("dcmdjpeg"), coded, plain]).returncode == 0
    with open_dicom(coded) as ours, open_dicom(plain) as theirs:
        # two inverse cosine transforms may round one level apart
        np.testing.assert_allclose(whole(ours), whole(theirs), atol=1.0)


def test_jpeg_of_twelve_bits_names_the_package_that_reads_it(smooth: Path) -> None:
    with pytest.raises(PoanError, match=r"needs pip install pylibjpeg-libjpeg \(GPL\)$"):
        open_dicom(as_jpeg(smooth, "+ee"))


def test_a_syntax_without_any_decoder_is_said(smooth: Path) -> None:
    ds = pydicom.dcmread(smooth)
    ds.compress(pydicom.uid.RLELossless)
    ds.file_meta.TransferSyntaxUID = pydicom.uid.MPEG2MPML
    ds.save_as(smooth)
    with pytest.raises(PoanError, match="there is no decoder for it; convert the series"):
        open_dicom(smooth)


@pytest.mark.parametrize(
    ("syntax", "module", "package"),
    [
        (pydicom.uid.JPEG2000Lossless, "openjpeg", "pylibjpeg-openjpeg"),
        (pydicom.uid.JPEGLSLossless, "jpeg_ls", "pyjpegls"),
        (pydicom.uid.JPEGLosslessSV1, "gdcm", "python-gdcm"),
    ],
)
def test_an_absent_plug_in_is_one_line_with_its_command(
    smooth: Path, syntax: pydicom.uid.UID, module: str, package: str
) -> None:
    if syntax == pydicom.uid.JPEGLosslessSV1:
        coded = as_jpeg(smooth, "+e1")
    else:
        coded = smooth
        ds = pydicom.dcmread(smooth)
        ds.compress(syntax)
        ds.save_as(smooth)
    code = (
        "import importlib.metadata as m, sys; whole = m.entry_points\n"
        f"sys.modules[{module!r}] = None\n"
        "m.entry_points = lambda **k: [e for e in whole(**k) if not e.module.startswith"
        f"({module!r})]\n"
        "from poan_runtime.errors import PoanError\n"
        "from poan_runtime.images.dicom.read import open_dicom\n"
        "try: open_dicom(sys.argv[1])\n"
        "except PoanError as error: print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, coded], capture_output=True, text=True)
    assert run.stderr == ""
    assert run.stdout.startswith(str(coded))
    assert run.stdout.endswith(f": pip install {package}\n")
