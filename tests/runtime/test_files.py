"""What killed processes leave is removed by the next, and two writers do not disturb each other."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from poan_runtime import files
from poan_runtime.files import WholeFile, cache_folder


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    target = tmp_path / "out.nii"
    left = tmp_path / ".out.nii.01234567.poan-partial"
    other = tmp_path / ".other.nii.01234567.poan-partial"
    for path in (left, other):
        path.write_bytes(b"half")
    with WholeFile(target) as file:
        file.write(b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "out.nii"]
    assert target.read_bytes() == b"whole"


def test_of_two_writers_the_last_to_be_done_wins_whole(tmp_path: Path) -> None:
    target = tmp_path / "out.nii"
    first, second = WholeFile(target), WholeFile(target)
    first.open()
    first.write(b"first")
    second.open()
    second.write(b"second")
    first.write(b" too")
    second.complete()
    assert target.read_bytes() == b"second"
    first.complete()
    assert target.read_bytes() == b"first too"
    assert [path.name for path in tmp_path.iterdir()] == ["out.nii"]


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    def write_and_fail() -> None:
        with WholeFile(tmp_path / "out.nii") as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_and_fail()
    assert [*tmp_path.iterdir()] == []


@pytest.mark.skipif(not files.CAN_HOLD, reason="a folder cannot be held here")
def test_a_working_folder_that_is_removed_before_it_is_held_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, removed = os.open, []

    def taken(path: Any, *arguments: Any, **options: Any) -> int:
        if not removed:
            removed.append(path)
            shutil.rmtree(path)
        return opened(path, *arguments, **options)

    monkeypatch.setattr(files.os, "open", taken)
    with files.working_folder(tmp_path, ".out.", ".part") as work:
        assert work.is_dir()
        assert removed != [work]
    assert [*tmp_path.iterdir()] == []


def test_where_there_is_no_home_the_cache_folder_goes_with_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nobodys() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nobodys)
    assert cache_folder().is_dir()
    assert cache_folder() == cache_folder()
