"""A disk that is really full: a small tmpfs, with a little room left."""

import importlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from poan_runtime.commands.run import main as poan_run
from poan_runtime.files import sha256_of

SIZE = 8 << 20
FILLER = "filler"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of 8 MiB in memory; skips where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs leave to mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def leave(disk: Path, room: int) -> None:
    """Fill the disk until ``room`` bytes are left, in whole pages."""
    (disk / FILLER).unlink(missing_ok=True)
    page = os.sysconf("SC_PAGE_SIZE")
    free = os.statvfs(disk).f_bavail * page
    (disk / FILLER).write_bytes(bytes(free - page - room // page * page))
    assert 0 <= os.statvfs(disk).f_bavail * page - room <= 2 * page


def files_of(folder: Path) -> dict[str, str]:
    """All files but the filler, hidden ones too, by their content."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.name != FILLER]
    return {str(path.relative_to(folder)): sha256_of(path) for path in found}


@pytest.mark.parametrize("name", ["sr.nii", "sr.nii.gz"])
@pytest.mark.parametrize("axis", ["axial", "sagittal"])
def test_a_run_whose_result_does_not_fit_leaves_what_was_there(
    name: str,
    axis: str,
    disk: Path,
    nearest_x2: Path,
    make_scan: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    voxels = np.random.default_rng(0).integers(1, 30000, (96, 80, 24)).astype(np.int16)
    out = disk / name
    arguments = [str(nearest_x2), str(make_scan(data=voxels)), "-o", str(out), "--axis", axis]
    out.write_bytes(b"precious")
    before = files_of(disk)
    for room in (0, 60_000, 500_000):
        leave(disk, room)
        assert poan_run([*arguments, "--overwrite"]) == 2, room
        (line,) = capsys.readouterr().err.splitlines()
        assert "No space left on device" in line
        assert files_of(disk) == before
    (disk / FILLER).unlink()
    assert poan_run([*arguments, "--overwrite"]) == 0
    assert list(files_of(disk)) == [name]


@pytest.mark.slow
def test_an_export_that_does_not_fit_leaves_the_earlier_one(
    disk: Path, tiny_export: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from poan_export.cli import main as poan_export

    shutil.copytree(tiny_export[1], disk / "net")
    arguments = ["--ckpt", str(tiny_export[0]), "--tile", "12"]
    arguments += ["--halo", "1", "--overlap", "2", "--engine", "none", "--out", str(disk / "net")]
    before = files_of(disk)
    for room in (0, 20_000, 60_000):
        leave(disk, room)
        assert poan_export(arguments) == 2, room
        said = capsys.readouterr().err.splitlines()
        assert said[-1].endswith("net: cannot be written: No space left on device"), said
        assert files_of(disk) == before
        assert sorted(path.name for path in disk.iterdir()) == [FILLER, "net"]
    (disk / FILLER).unlink()
    assert poan_export(arguments) == 0
    assert [path.name for path in disk.iterdir()] == ["net"]
    assert files_of(disk) != before


PROGRAMS = {
    "poan_runtime.commands.run": "{model} {scan} -o {disk}/sr.nii.gz",
    "poan_runtime.commands.bench": "{model} --iterations 1 --scan-iterations 0 --no-cold "
    "--json {disk}/bench.json",
    "poan_export.cli": "--ckpt {ckpt} --tile 12 --halo 1 --overlap 2 --engine none "
    "--out {disk}/net",
    "poan_train.cli": "--data {data} --scale 2 --arch srcnn --steps 1 --batch 1 --patch 8 "
    "--out {disk}/net.pt",
    "poan_train.evaluate": "--ckpt {ckpt} --data {data} --lr-model bicubic --every 4 "
    "--json {disk}/eval.json",
}


@pytest.mark.slow
@pytest.mark.parametrize("module", PROGRAMS)
def test_a_folder_that_may_only_be_read_is_one_line(
    module: str,
    disk: Path,
    nearest_x2: Path,
    scan: Path,
    scan_folder: Path,
    tiny_export: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    places = {"model": nearest_x2, "scan": scan, "data": scan_folder}
    places |= {"disk": disk, "ckpt": tiny_export[0]}
    arguments = [word.format(**places) for word in PROGRAMS[module].split()]
    assert importlib.import_module(module).main(arguments) == 2
    said = capsys.readouterr().err.splitlines()
    assert str(disk) in said[-1]
    assert said[-1].endswith(": Read-only file system"), said
    assert "Traceback" not in "".join(said)
