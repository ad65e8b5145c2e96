"""Broken, lying and foreign DICOM files: one line each, and no memory for what is not there."""

import subprocess
import sys
import zlib
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset

from poan_runtime.errors import PoanError
from poan_runtime.images.dicom.files import codestream_size
from poan_runtime.images.dicom.read import open_dicom
from tests.runtime.images.dicom.fuzz import broken, outcome
from tests.runtime.images.dicom.made import MakeSeries, write


def refused(path: Path) -> str:
    with pytest.raises(PoanError) as error:
        open_dicom(path)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture
def one(make_series: MakeSeries) -> Path:
    """A file of 64x64."""
    return make_series(slices=1, shape=(64, 64)) / "000.dcm"


def test_a_truncated_file_is_refused(one: Path) -> None:
    content = one.read_bytes()
    for length in (140, 400, len(content) - 1000):
        one.write_bytes(content[:length])
        assert refused(one).startswith(str(one))
    assert refused(one).endswith("is cut short, 1000 bytes are missing")


def test_a_length_of_four_gigabytes_reserves_nothing(one: Path) -> None:
    content = bytearray(one.read_bytes())
    at = content.index(b"\x02\x00\x01\x00OB") + 8  # FileMetaInformationVersion
    content[at : at + 4] = (0xFFFFFFF0).to_bytes(4, "little")
    one.write_bytes(content)
    code = (
        "import resource, sys\n"
        "from poan_runtime.errors import PoanError\n"
        "from poan_runtime.images.dicom.read import open_dicom\n"
        "resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))\n"
        "try: open_dicom(sys.argv[1])\n"
        "except PoanError as error: print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(one)], capture_output=True, text=True)
    assert run.stdout.startswith(str(one))
    assert "beyond this machine" not in run.stdout  # a MemoryError, caught


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("Rows", 4000, "its pixels are 8192 bytes, 4000 rows of 64 in 1 frames need 512000"),
        ("Columns", 4000, "64 rows of 4000 in 1 frames need 512000"),
        ("Columns", 63, "64 rows of 63 in 1 frames need 8064"),
        ("Rows", 2, "2 rows of 64 in 1 frames need 256"),
        ("Rows", 60000, "expected 1 to 4096 rows and columns, got 60000 and 64"),
    ],
)
def test_lying_rows_and_columns_are_refused(one: Path, name: str, value: int, words: str) -> None:
    ds = pydicom.dcmread(one)
    setattr(ds, name, value)
    ds.save_as(one)
    assert refused(one).endswith(words)


@pytest.mark.parametrize(
    "syntax", [pydicom.uid.JPEG2000Lossless, pydicom.uid.JPEGLSLossless, pydicom.uid.RLELossless]
)
def test_a_frame_that_is_coded_larger_than_the_header_says_is_refused(
    one: Path, syntax: pydicom.uid.UID
) -> None:
    ds = pydicom.dcmread(one)
    ds.compress(syntax)
    ds.Rows = 32
    ds.save_as(one)
    line = refused(one)
    if syntax != pydicom.uid.RLELossless:
        assert "a frame is coded as 64 rows of 64, the header says 32 of 64" in line


def test_a_deflated_bomb_is_measured_before_it_is_unpacked(one: Path) -> None:
    ds = pydicom.dcmread(one)
    write(ds, one, pydicom.uid.DeflatedExplicitVRLittleEndian)
    content = one.read_bytes()
    meta = 144 + int(pydicom.dcmread(one).file_meta.FileMetaInformationGroupLength)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    zeros = bytes(1 << 20)
    bomb = b"".join(packer.compress(zeros) for _ in range(300)) + packer.flush()
    one.write_bytes(content[:meta] + bomb)
    assert refused(one).endswith("is deflated and unpacks to over 256 MiB")


def test_a_series_that_unpacks_beyond_belief_reserves_no_disk(
    make_series: MakeSeries, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_series(slices=40, shape=(64, 64))
    black = pydicom.dcmread(folder / "000.dcm")
    black.Rows = black.Columns = 4096
    black.PixelData = bytes(2 << 24)
    black.compress(pydicom.uid.JPEG2000Lossless)
    for k, file in enumerate(sorted(folder.iterdir())):  # each alone is believable
        black.SOPInstanceUID = black.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{k}"
        black.ImagePositionPatient[2] = str(4 * k)
        black.save_as(file)
    reserved: list[int] = []
    monkeypatch.setattr("poan_runtime.files.os.posix_fallocate", lambda *a: reserved.append(a[2]))
    assert refused(folder).endswith("KiB of files unpack to 1280 MiB; no image does that")
    assert reserved == []


def test_a_disk_without_room_is_one_line_before_anything_is_decoded(
    one: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("poan_runtime.files.os.posix_fallocate", full)
    assert refused(one).endswith("cannot write a temporary file: No space left on device")


def test_too_many_frames_are_refused(one: Path) -> None:
    ds = pydicom.dcmread(one)
    ds.NumberOfFrames = 2_000_000_000
    ds.save_as(one)
    assert "expected 1 to 65536 frames, got 2000000000" in refused(one)


@pytest.mark.parametrize(
    ("uid", "words"),
    [
        ("1.2.840.10008.5.1.4.1.1.104.1", "holds a PDF, no image"),
        ("1.2.840.10008.1.3.10", "a DICOMDIR lists images and holds none; name the folder"),
        ("1.2.840.10008.5.1.4.1.1.2", "expected an MR image, got CT Image Storage"),
    ],
)
def test_other_kinds_of_file_are_named(one: Path, uid: str, words: str) -> None:
    ds: Dataset = pydicom.dcmread(one)
    ds.SOPClassUID = pydicom.uid.UID(uid)
    assert refused(write(ds, one)).endswith(words)


def test_a_colour_image_is_refused(one: Path) -> None:
    ds = pydicom.dcmread(one)
    ds.SamplesPerPixel = 3
    ds.save_as(one)
    assert "got a colour image" in refused(one)


@pytest.mark.parametrize("kind", ["text", "empty", "zip"])
def test_what_is_no_dicom_is_said(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file.dcm"
    path.write_bytes({"text": b"no" * 200, "empty": b"", "zip": b"PK\x03\x04" + bytes(300)}[kind])
    assert refused(path).endswith("expected a DICOM file, got something else")


def test_a_broken_file_in_a_folder_is_said_and_the_rest_is_read(make_series: MakeSeries) -> None:
    folder = make_series()
    (folder / "bad.dcm").write_bytes((folder / "000.dcm").read_bytes()[:200])
    with open_dicom(folder) as source:
        assert source.shape == (10, 12, 4)
        assert len(source.warnings) == 1
        assert source.warnings[0].startswith(str(folder / "bad.dcm"))


@pytest.mark.slow
def test_files_broken_at_random_are_read_or_refused_in_one_line(
    make_series: MakeSeries, tmp_path: Path
) -> None:
    plain = make_series(slices=1, shape=(64, 64)) / "000.dcm"
    contents = [plain.read_bytes()]
    for syntax in (pydicom.uid.RLELossless, pydicom.uid.JPEG2000Lossless):
        ds = pydicom.dcmread(plain)
        ds.compress(syntax)
        ds.save_as(tmp_path / "coded.dcm")
        contents.append((tmp_path / "coded.dcm").read_bytes())
    path = tmp_path / "broken.dcm"
    outcomes = []
    for seed in range(300):
        path.write_bytes(broken(contents[seed % 3], seed))
        outcomes.append(outcome(path))
    assert 20 < outcomes.count("read") < 280  # both ends are reached


def test_the_header_of_a_codestream_is_read_without_decoding_it() -> None:
    j2k = bytes.fromhex("ff4fff51002f0000") + (300).to_bytes(4) + (200).to_bytes(4) + bytes(8)
    assert codestream_size(j2k) == (200, 300)
    assert codestream_size(b"") is None
    assert codestream_size(b"\xff\xd8\xff") is None


def test_the_decoders_say_nothing_on_their_own(one: Path) -> None:
    ds = pydicom.dcmread(one)
    ds.compress(pydicom.uid.JPEG2000Lossless)
    content = bytearray(ds.PixelData)
    content[200:400] = bytes(200)
    ds.PixelData = bytes(content)
    ds.save_as(one)
    code = (
        "import sys; from poan_runtime.errors import PoanError\n"
        "from poan_runtime.images.dicom.read import open_dicom\n"
        "try: open_dicom(sys.argv[1])\n"
        "except PoanError: pass\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(one)], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
