"""Reading scans: every type, order and layout, and every way to be broken."""

import gzip
import hashlib
import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poan_runtime.errors import PoanError
from poan_runtime.geometry import Geometry, spatial_shape
from poan_runtime.images.nifti.header import parse_header, upscaled_header
from poan_runtime.images.nifti.read import open_scan
from poan_runtime.images.stored import stored_as
from poan_runtime.images.volume import read_volume
from tests.runtime.images.conformance import check_source

DTYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"]
OFFSET_OF = {"dim": 40, "datatype": 70, "pixdim": 76, "vox_offset": 108, "scl_slope": 112}
OFFSET_OF |= {"scl_inter": 116, "qform_code": 252, "sform_code": 254, "quatern_b": 256}
OFFSET_OF |= {"srow_x": 280, "descrip": 148}


def patched(path: Path, field: str, fmt: str, *values: Any) -> Path:
    """Overwrite a field of a little-endian NIfTI-1 header, gzipped or not."""
    zipped = path.name.endswith(".gz")
    content = bytearray(gzip.decompress(path.read_bytes()) if zipped else path.read_bytes())
    struct.pack_into("<" + fmt, content, OFFSET_OF[field], *values)
    path.write_bytes(gzip.compress(content, mtime=0) if zipped else content)
    return path


def refused(path: Path) -> str:
    with pytest.raises(PoanError) as error:
        open_scan(path).__exit__(None, None, None)
    message = str(error.value)
    assert path.name[:-4] in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_every_type_and_byte_order_is_read(
    make_scan: Any, order: str, dtype: str, kind: Any
) -> None:
    path = make_scan("scan.nii", dtype=order + dtype, kind=kind)
    expected = np.asarray(nib.load(path).dataobj).astype(np.float32)
    volume = read_volume(path)
    assert np.array_equal(volume.data, expected)
    assert volume.data.dtype == np.float32
    np.testing.assert_array_equal(volume.affine, nib.load(path).affine)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_across_any_axis_are_those_of_the_array(
    make_scan: Any, axis: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poan_runtime.images.nifti.read.READ_BYTES", 1500)
    path = make_scan(shape=(7, 11, 9, 2, 3))
    data = np.asarray(nib.load(path).dataobj).reshape(7, 11, 9, 6, order="F")
    with open_scan(path) as scan:
        assert scan.header.volumes == 6
        got = scan.read_slices(axis, 2, 6, volume=4)
    assert np.array_equal(got, np.moveaxis(data[..., 4], axis, 0)[2:6])


@pytest.mark.parametrize("name", ["a.hdr", "a.img", "a.img.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.Nifti2Pair, nib.AnalyzeImage])
def test_pairs_are_read_from_either_file(make_scan: Any, name: str, kind: Any) -> None:
    path = make_scan(name, kind=kind)
    volume = read_volume(path)
    assert np.array_equal(volume.data, np.asarray(nib.load(path).dataobj))
    np.testing.assert_allclose(volume.affine, nib.load(path).affine, atol=1e-6)
    with open_scan(path) as scan:
        assert len(scan.sha256()) == 2


def test_an_analyze_header_is_read_with_a_warning(make_scan: Any) -> None:
    path = make_scan("a.img", kind=nib.AnalyzeImage)
    with open_scan(path) as scan:
        assert [*scan.header.warnings] == ["Analyze header: it does not say which side is left"]
    path.with_suffix(".mat").touch()
    with open_scan(path) as scan:
        assert ".mat file" in scan.header.warnings[1]


def test_half_of_a_pair_is_refused(make_scan: Any) -> None:
    path = make_scan("pair.img", kind=nib.Nifti1Pair)
    path.with_suffix(".hdr").unlink()
    assert "expected pair.hdr beside it" in refused(path)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1), (6, 5, 4), (6, 5, 4, 3), (3, 4, 2, 1, 2)])
def test_ranks_two_to_five_are_read(make_scan: Any, shape: tuple[int, ...]) -> None:
    path = make_scan(shape=shape)
    with open_scan(path) as scan:
        assert scan.header.shape == shape
        assert scan.header.volume_shape == spatial_shape(shape)


@pytest.mark.parametrize(
    ("slope", "inter", "used"),
    [
        (0.37, -12.5, (0.37, -12.5)),
        (0.0, 7.0, (1, 0)),
        (np.nan, np.nan, (1, 0)),
        (np.inf, 0.0, (1, 0)),
        (2.0, np.nan, (2, 0)),
        (-1.0, 3.0, (-1, 3)),
    ],
)
def test_scaling_is_applied_unless_the_slope_is_zero_or_not_finite(
    make_scan: Any, slope: float, inter: float, used: tuple[float, float]
) -> None:
    path = make_scan("scan.nii")
    stored = read_volume(path).data.astype(np.float64)
    patched(path, "scl_slope", "ff", slope, inter)
    with open_scan(path) as scan:
        header = scan.header
    expected = (stored * np.float32(used[0]) + np.float32(used[1])).astype(np.float32)
    # Slope and intercept are float32 in the header, the product is rounded to float32 once.
    np.testing.assert_allclose(read_volume(path).data, expected, rtol=1e-6, atol=1e-5)
    assert any("scl_inter" in warning for warning in header.warnings) == (slope == 2.0)


def test_values_float32_cannot_hold_are_infinite_not_an_error(make_scan: Any) -> None:
    data = np.array([[[1e300, -1e300, np.nan, 2.0]]])
    values = read_volume(make_scan("scan.nii", data=data, dtype="<f8")).data
    assert np.array_equal(values, np.float32([[[np.inf, -np.inf, np.nan, 2]]]), equal_nan=True)


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize(
    ("field", "fmt", "values", "message"),
    [
        ("dim", "8h", (3, 30000, 30000, 30000, 1, 1, 1, 1), "54000000000000"),
        ("dim", "8h", (3, 20, 18, 6, 1, 1, 1, 1), "4320 bytes"),
        ("dim", "8h", (3, 20, 0, 5, 1, 1, 1, 1), "at least one voxel"),
        ("dim", "8h", (3, 20, -18, 5, 1, 1, 1, 1), "at least one voxel"),
        ("dim", "8h", (1, 1800, 1, 1, 1, 1, 1, 1), "expected 2 to 7 dimensions, got 1"),
        ("dim", "8h", (9, 20, 18, 5, 1, 1, 1, 1), "expected 2 to 7 dimensions, got 9"),
        ("datatype", "h", (9999,), "9999 not recognized"),
        ("datatype", "h", (32,), "got complex64"),
        ("datatype", "h", (128,), "got RGB"),
        ("datatype", "h", (1,), "1 not supported"),
        ("datatype", "h", (0,), "not supported"),
        ("vox_offset", "f", (100.0,), "vox offset 100 too low"),
        ("vox_offset", "f", (1e9,), "voxels"),
        ("vox_offset", "f", (float("nan"),), "unreadable header|expected voxels from byte"),
        ("vox_offset", "f", (-352.0,), "vox offset -352 too low"),
        ("srow_x", "f", (float("nan"),), "finite affine"),
    ],
)
def test_a_lying_header_is_one_line(
    make_scan: Any, name: str, field: str, fmt: str, values: tuple[Any, ...], message: str
) -> None:
    path = patched(make_scan(name), field, fmt, *values)
    with pytest.raises(PoanError, match=message):
        open_scan(path).__exit__(None, None, None)
    refused(path)


def test_a_qform_that_is_no_rotation_gives_way_to_the_sform(make_scan: Any) -> None:
    path = patched(make_scan("scan.nii"), "quatern_b", "fff", 3.0, 3.0, 3.0)
    patched(path, "qform_code", "h", 1)
    with open_scan(path) as scan:
        assert any("qform" in warning for warning in scan.header.warnings)
        assert int(scan.header.struct["qform_code"]) == 0
        np.testing.assert_allclose(scan.header.affine, np.diag([0.9, 0.9, 4, 1]), atol=1e-6)
    patched(path, "sform_code", "h", 0)
    assert "qform is not a rotation" in refused(path)


@pytest.mark.parametrize(
    ("description", "ours"),
    [("poan t2_x2", True), ("dcm2niix; poan my_x4", True), ("", False), ("poanesque scan", False)],
)
def test_a_file_that_poan_wrote_is_taken_with_a_word(
    make_scan: Any, description: str, ours: bool
) -> None:
    path = patched(make_scan("scan.nii.gz"), "descrip", "80s", description.encode())
    with open_scan(path) as scan:
        assert any("poan made this file" in warning for warning in scan.warnings) == ours


def test_voxel_sizes_that_are_not_finite_come_from_the_sform(make_scan: Any) -> None:
    path = patched(make_scan("scan.nii"), "pixdim", "4f", 1.0, np.nan, np.inf, 4.0)
    with open_scan(path) as scan:
        assert any("pixdim" in warning for warning in scan.header.warnings)
        np.testing.assert_allclose(scan.header.struct["pixdim"][1:4], [0.9, 0.9, 4], rtol=1e-6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"hello, this is text" * 40, "starts with"),
        (b"\x1f\x8b", "ends early"),
        (gzip.compress(b"", mtime=0), "empty"),
        (gzip.compress(b"x" * 2000, mtime=0), "starts with"),
        (struct.pack("<i", 348) + bytes(50), "starts with"),
        (struct.pack("<i", 348) + bytes(340) + b"n+1\0", "unreadable header"),
        (struct.pack("<i", 348) + bytes(340) + b"ni1\0", "pair"),
        (struct.pack("<i", 540) + b"n+2\0" + bytes(100), "expected a header of 540 bytes"),
    ],
)
def test_what_is_no_scan_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "junk.nii.gz"
    path.write_bytes(content)
    with pytest.raises(PoanError, match=message):
        open_scan(path)
    refused(path)


def damage(content: bytes, how: str) -> bytes:
    if how == "cut":
        return content[: len(content) // 2]
    if how == "no trailer":
        return content[:-8]
    if how == "checksum":
        return content[:-8] + bytes(4) + content[-4:]
    if how == "length":
        return content[:-4] + b"\x01\0\0\0"
    if how == "flipped":
        middle = len(content) // 2
        return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]
    return content + b"other bytes"


@pytest.mark.parametrize("how", ["cut", "no trailer", "checksum", "length", "flipped", "trailing"])
def test_a_damaged_gzip_stream_is_one_line(make_scan: Any, how: str) -> None:
    path = make_scan()
    path.write_bytes(damage(path.read_bytes(), how))
    assert "gzip stream" in refused(path)


def test_gzip_in_several_members_with_padding_and_any_name_is_read(make_scan: Any) -> None:
    path = make_scan()
    expected = read_volume(path).data
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[:400]) + gzip.compress(content[400:]) + bytes(512))
    assert np.array_equal(read_volume(path).data, expected)
    renamed = path.rename(path.with_name("zipped.nii"))
    assert np.array_equal(read_volume(renamed).data, expected)
    plain = path.with_name("plain.nii.gz")
    plain.write_bytes(content)
    assert np.array_equal(read_volume(plain).data, expected)


def test_bytes_after_the_voxels_are_checked_but_not_kept(
    make_scan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_scan()
    expected = read_volume(path).data
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(10**7)))
    with open_scan(path) as scan:
        assert scan._voxels.seek(0, 2) == 352 + 2 * 20 * 18 * 5
    assert np.array_equal(read_volume(path).data, expected)


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One scan of each kind, each with a qform."""
    folder = tmp_path_factory.mktemp("headers")
    paths = []
    for kind, name in (
        (nib.Nifti1Image, "one.nii"),
        (nib.Nifti2Image, "two.nii"),
        (nib.Nifti1Pair, "pair.hdr"),
        (nib.AnalyzeImage, "old.hdr"),
    ):
        image = kind(np.ones((5, 6, 4), np.int16), np.diag([1, 1, 3, 1.0]))
        if hasattr(image, "set_qform"):
            image.set_qform(np.diag([1, 1, 3, 1.0]), 1)
        nib.save(image, folder / name)
        paths.append(folder / name)
    return paths


bytes_at = st.tuples(st.integers(0, 559), st.sampled_from([0, 1, 127, 128, 255]))


@settings(max_examples=300)
@given(st.integers(0, 3), st.lists(bytes_at, min_size=1, max_size=4))
def test_any_damaged_header_works_or_is_one_line(
    headers: list[Path], which: int, damages: list[tuple[int, int]]
) -> None:
    path = headers[which]
    sound = path.read_bytes()
    damaged = bytearray(sound)
    for place, value in damages:
        damaged[min(place, len(sound) - 1)] = value
    path.write_bytes(damaged)
    message = ""
    try:
        with open_scan(path) as scan:
            lies = Geometry.derive(scan.shape, scan.affine, scale=2, grid="centre")
            scan.read_slices(lies.axis, 0, 1)
            stored = stored_as(scan.dtype, scan.header.slope, scan.header.inter)
            start = upscaled_header(scan.header, lies, stored, note="poan", path=Path("out.nii"))
            assert parse_header(start, path, detached=False).offset == len(start)
    except PoanError as error:
        message = str(error)
    finally:
        path.write_bytes(sound)
    assert "\n" not in message


@pytest.mark.parametrize("name", ["missing.nii", "folder.nii"])
def test_a_path_that_is_no_file_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.nii").mkdir()
    assert "no such file" in refused(tmp_path / name) or "folder" in name


def test_a_temporary_folder_that_cannot_be_written_is_one_line(
    make_scan: Any, tmp_path: Path
) -> None:
    path = make_scan()
    with pytest.raises(PoanError, match="cannot write a temporary file: No such file"):
        open_scan(path, tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.hdr"])
def test_the_source_keeps_the_contract(make_scan: Any, name: str) -> None:
    kind = nib.Nifti1Pair if name.endswith(".hdr") else nib.Nifti1Image
    path = make_scan(name, shape=(7, 6, 5, 2), kind=kind)
    expected = np.asarray(nib.load(path).dataobj).astype(np.float32)
    check_source(open_scan(path), expected)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.img.gz"])
def test_a_hash_taken_while_unpacking_is_that_of_the_file(make_scan: Any, name: str) -> None:
    path = make_scan(name, kind=nib.Nifti1Pair if ".img" in name else nib.Nifti1Image)
    with open_scan(path, hashed=True) as scan:
        found = scan.sha256()
    with open_scan(path) as scan:
        assert found == scan.sha256()
    assert found[name] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_packed_file_is_read_once_for_voxels_and_hash(
    make_scan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_scan("a.nii.gz")
    with open_scan(path, hashed=True) as scan:
        monkeypatch.setattr("poan_runtime.images.nifti.read.sha256_of", None)  # would be called
        assert len(scan.sha256()) == 1


def test_a_header_is_parsed_once(make_scan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []

    def count(*args: Any, **options: Any) -> Any:
        parsed.append(args)
        return parse_header(*args, **options)

    monkeypatch.setattr("poan_runtime.images.nifti.header.parse_header", count)
    for name in ("a.nii", "a.nii.gz"):
        open_scan(make_scan(name)).close()
    assert len(parsed) == 2
