"""A disk that is full, or a file that its server lost, at every call of every command."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

WRITE, READ = 0, 1
Sweep = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def failing(shim: Callable[[Path], Path]) -> Path:
    """The library to preload."""
    return shim(Path(__file__).with_name("shim.c"))


@pytest.fixture
def sweep(failing: Path, tmp_path: Path, repository: Path) -> Sweep:
    """Runs a module's ``main`` with each call failing in turn; the last run is whole."""

    def swept(module: str, arguments: list[str], op: int, code: int, most: int) -> Any:
        asked = {
            "module": module,
            "arguments": arguments,
            "op": op,
            "errno": code,
            "most": most,
            "before": str(tmp_path / "before"),
            "work": str(tmp_path / "work"),
        }
        done = subprocess.run(
            [sys.executable, "-m", "tests.disk.sweep", json.dumps(asked)],
            env={
                **os.environ,
                "LD_PRELOAD": str(failing),
                "TMPDIR": str(tmp_path / "work"),
                "PYTHONPATH": os.pathsep.join([str(repository), *sys.path]),
                "OMP_NUM_THREADS": "1",
            },
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    return swept


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """What is there before each run: two T2 scans of noise."""
    folder = tmp_path / "before/data"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in (1, 2):
        voxels = random.integers(0, 3000, (48, 40, 4)).astype(np.int16)
        image = nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 4.0, 1.0]))
        nib.save(image, folder / f"sub-{number}_T2w.nii.gz")
    return folder


def check(
    runs: list[dict[str, Any]], program: str, strerror: str, among: set[str], most: int = 1
) -> None:
    """Each failing run is one line and status 2; what has its name is what a whole run writes."""
    *failing, whole = runs
    assert whole["status"] == 0, whole["said"]
    assert len(failing) >= 2
    for number, run in enumerate(failing):
        assert run["status"] == 2, (number, run)
        lines = [line for line in run["said"].splitlines() if line.startswith(program + ": ")]
        # a scan that cannot be written, and the report that was to tell of it
        assert 1 <= len(lines) <= most, (number, run["said"])
        assert all(strerror in line for line in lines), (number, run["said"])
        assert "Traceback" not in run["said"]
        for name, digest in run["files"].items():
            if name not in among:
                assert whole["files"].get(name) == digest, (number, name)


def test_a_full_disk_at_any_write_of_a_run_is_one_line(
    sweep: Sweep, before: Path, tmp_path: Path, nearest_x2: Path
) -> None:
    work = tmp_path / "work"
    arguments = [
        str(nearest_x2),
        str(work / "data/sub-1_T2w.nii.gz"),
        "-o",
        str(work / "sr.nii.gz"),
    ]
    arguments += ["--preview", str(work / "sr.png"), "--changed-map", str(work / "map.nii.gz")]
    arguments += ["--report", str(work / "sr.json"), "--threads", "1", "--backend", "onnxruntime"]
    runs = sweep("poan_runtime.commands.run", arguments, WRITE, errno.ENOSPC, 100)
    check(runs, "poan-run", "No space left on device", {"sr.json"}, 2)  # it holds times
    assert {"sr.nii.gz", "sr.png", "map.nii.gz", "sr.json"} <= set(runs[-1]["files"])
    assert "sr.nii.gz" not in runs[0]["files"]


def test_a_scan_that_its_server_lost_at_any_read_is_one_line(
    sweep: Sweep, before: Path, tmp_path: Path, nearest_x2: Path
) -> None:
    work = tmp_path / "work"
    arguments = [str(nearest_x2), str(work / "data/sub-1_T2w.nii.gz"), "-o", str(work / "sr.nii")]
    arguments += ["--threads", "1", "--backend", "onnxruntime"]
    runs = sweep("poan_runtime.commands.run", arguments, READ, errno.ESTALE, 100)
    check(runs, "poan-run", "Stale file handle", set())
    for run in runs[:-1]:
        assert ("sr.nii" in run["files"]) == ("sr.nii: is whole, but" in run["said"]), run


def without_logs(runs: list[dict[str, Any]]) -> None:
    """Forget files that grow line by line, and the cache, whose folders appear whole."""
    for run in runs:
        kept = {k: v for k, v in run["files"].items() if k.startswith("data/") or k == "net.pt"}
        run["files"] = kept


TRAIN = ["--scale", "2", "--batch", "1", "--patch", "8", "--precision", "fp32", "--steps", "1"]
TRAIN += ["--set", "channels=4", "--set", "blocks=1", "--set", "poab_after=1"]


def trainings(
    sweep: Sweep, work: Path, cache: Path, calls: int, error: int, most: int
) -> list[dict[str, Any]]:
    """A training of one step for each failing call."""
    arguments = ["--data", str(work / "data"), *TRAIN, "--out", str(work / "net.pt")]
    runs = sweep("poan_train.cli", [*arguments, "--cache", str(cache)], calls, error, most)
    without_logs(runs)
    return runs


def test_a_full_disk_at_any_write_of_a_training_is_one_line(
    sweep: Sweep, before: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "work/cache"
    runs = trainings(sweep, tmp_path / "work", cache, WRITE, errno.ENOSPC, 40)
    check(runs, "poan-train", "No space left on device", {"net.pt"})
    assert not any("net.pt" in run["files"] for run in runs[:5])


def test_volumes_that_their_server_lost_are_one_line_of_a_training(
    sweep: Sweep, before: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "elsewhere"
    runs = trainings(sweep, tmp_path / "work", cache, READ, errno.ESTALE, 30)
    check(runs, "poan-train", "Stale file handle", {"net.pt"})
