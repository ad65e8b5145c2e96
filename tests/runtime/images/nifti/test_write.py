"""Outputs that appear whole or not at all."""

import contextlib
import dataclasses
import errno
import gzip
import io
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poan_runtime.errors import PoanError
from poan_runtime.files import WholeFile
from poan_runtime.geometry import Geometry
from poan_runtime.images.nifti import gzip as deflate
from poan_runtime.images.nifti.gzip import GzipWriter
from poan_runtime.images.nifti.header import plain_header
from poan_runtime.images.nifti.write import NiftiSink
from poan_runtime.images.stored import stored_as, to_stored
from tests.runtime.images.conformance import SHAPE, check_sink


@given(
    st.lists(st.binary(max_size=3000), max_size=5), st.integers(1, 3), st.sampled_from([0, 1, 9])
)
def test_any_reader_gets_the_bytes_back(parts: list[bytes], threads: int, level: int) -> None:
    file = io.BytesIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deflate, "BLOCK", 700)
        writer = GzipWriter(file, level=level, threads=threads)
        for part in parts:
            writer.write(part)
        writer.close()
    assert gzip.decompress(file.getvalue()) == b"".join(parts)


def test_a_file_gets_its_name_once_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "out.nii"
    with WholeFile(target) as file:
        file.write(b"abc")
        assert not target.exists()
        (partial,) = tmp_path.iterdir()
        assert partial.name.startswith(".out.nii.")
        assert partial.name.endswith(".poan-partial")
    assert target.read_bytes() == b"abc"
    assert [*tmp_path.iterdir()] == [target]


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_an_error_leaves_what_was_there_before(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "out.nii"
    target.write_bytes(b"before")

    def write_half() -> None:
        with WholeFile(target) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        write_half()
    assert [*tmp_path.iterdir()] == [target]
    assert target.read_bytes() == b"before"


class FullDisk(io.BytesIO):
    """Takes some bytes, then has no space left."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def write(self, data: Any) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def geometry(axis: int = 2, volumes: int = 1) -> Geometry:
    """4x6x5 voxels that stay as many."""
    shape = (4, 6, 5, volumes)
    return Geometry.derive(shape, np.eye(4), scale=1, grid="centre", axis=axis)


def sink(target: Path, dtype: str = "<i2", shape: tuple[int, ...] = (4, 6, 5)) -> NiftiSink:
    header = plain_header(shape, np.dtype(dtype).newbyteorder("="), np.eye(4))
    return NiftiSink(target, dataclasses.replace(header, dtype=np.dtype(dtype)), note="poan")


def write_all(out: NiftiSink, axis: int, slices: Any) -> None:
    with contextlib.closing(out):
        out.begin(geometry(axis))
        out.write(0, 0, slices)
        out.finish()


@pytest.mark.parametrize("room", [0, 20, 100])
@pytest.mark.parametrize("name", ["out.nii", "out.nii.gz"])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, room: int
) -> None:
    real_open = Path.open

    def opened(path: Path, mode: str = "r", **settings: Any) -> Any:
        if "x" not in mode:
            return real_open(path, mode, **settings)
        real_open(path, mode).close()
        return FullDisk(room)

    monkeypatch.setattr(Path, "open", opened)
    noise = np.random.default_rng(0).normal(0, 9999, (5, 4, 6)).astype(np.float32)
    message = rf"{name}: cannot be written: No space left"
    with pytest.raises(PoanError, match=message):
        write_all(sink(tmp_path / name), 2, noise)
    assert [*tmp_path.iterdir()] == []


def test_a_full_temporary_folder_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "poan_runtime.images.nifti.write.temporary_file", lambda scratch: FullDisk(10)
    )
    message = "cannot write a temporary file: No space left"
    with pytest.raises(PoanError, match=message):
        write_all(sink(tmp_path / "out.nii"), 0, np.zeros((4, 6, 5), np.float32))
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<f4", ">f8", "u1"])
def test_slabs_across_any_axis_end_up_in_file_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, axis: int, dtype: str
) -> None:
    monkeypatch.setattr("poan_runtime.images.nifti.write.ASSEMBLY_BYTES", 100)
    volumes = np.random.default_rng(0).integers(0, 200, (2, 4, 6, 5)).astype(np.float32)
    out = sink(tmp_path / "out.nii.gz", dtype)
    with contextlib.closing(out):
        out.begin(geometry(axis, volumes=2))
        for index, volume in enumerate(volumes):
            slices = np.moveaxis(volume, axis, 0)
            out.write(index, 0, slices[:3])
            out.write(index, 3, slices[3:])
        out.finish()
    content = gzip.decompress((tmp_path / "out.nii.gz").read_bytes())
    expected = b"".join(volume.astype(dtype).tobytes("F") for volume in volumes)
    assert content[352:] == expected


@pytest.mark.parametrize("name", ["out.nii", "out.nii.gz"])
def test_the_sink_keeps_the_contract(tmp_path: Path, name: str) -> None:
    target = tmp_path / name

    def read() -> Any:
        return np.asarray(nib.load(target).dataobj) if target.exists() else None

    check_sink(lambda: sink(target, "<f4", SHAPE), read)
    assert [*tmp_path.iterdir()] == [target]


def test_saturated_voxels_are_a_warning(tmp_path: Path) -> None:
    out = sink(tmp_path / "out.nii", "<i2")
    write_all(out, 2, np.full((5, 4, 6), 40000, np.float32))
    assert out.warnings == ("120 voxels do not fit into int16 (-32768 to 32767); cut to its ends",)


@pytest.mark.parametrize(
    ("source", "wanted", "stays"),
    [
        ("i2", None, True),
        ("u1", "i2", True),
        ("i2", "u1", False),
        ("i2", "f4", False),
        ("f4", "f8", True),
        ("f4", "i2", False),
    ],
)
def test_slope_and_intercept_stay_where_the_type_holds_what_was_stored(
    source: str, wanted: str | None, stays: bool
) -> None:
    found = stored_as(np.dtype(source), 0.5, 3.0, None if wanted is None else np.dtype(wanted))
    assert (found.slope, found.inter, found.scaled) == (
        (0.5, 3.0, True) if stays else (1.0, 0.0, False)
    )


def test_compression_takes_no_more_threads_than_the_process_has_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("poan_runtime.images.nifti.write.usable_cores", lambda: 3)

    def make(file: Any, threads: int) -> GzipWriter:
        asked.append(threads)
        return GzipWriter(file, threads=threads)

    monkeypatch.setattr("poan_runtime.images.nifti.write.GzipWriter", make)
    header = plain_header((4, 6, 5), np.dtype("i2"), np.eye(4))
    for wanted in (None, 2, 99):
        out = NiftiSink(tmp_path / "out.nii.gz", header, note="", threads=wanted)
        write_all(out, 2, np.zeros((5, 4, 6), np.float32))
    assert asked == [3, 2, 3]


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"])
@pytest.mark.parametrize("slope", [1.0, 0.5])
def test_integers_round_and_saturate_in_stored_units(dtype: str, slope: float) -> None:
    info = np.iinfo(dtype)
    real = np.float32([-1e30, -1e30, 0.2, 2.6, 1e30]) * np.float32(slope)
    stored, saturated = to_stored(real, np.dtype(dtype), slope, 0.0)
    assert saturated == 3
    assert stored[:4].tolist() == [info.min, info.min, 0, 3]
    # 64-bit ends are not float64 values; the nearest one inside is taken.
    assert info.max - int(stored[4]) <= (2048 if info.bits == 64 else 0)


def test_slope_and_intercept_are_undone() -> None:
    real = np.float32([-12.5, 0.45, 24.5])
    stored, saturated = to_stored(real, np.dtype("i2"), 0.37, -12.5)
    assert (stored.tolist(), saturated) == ([0, 35, 100], 0)


def test_a_folder_as_the_target_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PoanError, match="got a folder"), WholeFile(tmp_path):
        pass
