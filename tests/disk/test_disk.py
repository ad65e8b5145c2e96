"""A disk that is full, or a file that its server lost, at every call of every command."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from poan_runtime.files import sha256_of

WRITE, READ = 0, 1
ASIDE = r"^\.net\.[^/]+\.poan-earlier/"
TEMPORARY = re.compile(r"(^|/)\.(?!bidsignore$|net\.[^/]+\.poan-earlier)|poan-partial")
Sweep = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def failing(shim: Callable[[Path], Path]) -> Path:
    """The library to preload."""
    return shim(Path(__file__).with_name("shim.c"))


@pytest.fixture
def sweep(failing: Path, tmp_path: Path, repository: Path) -> Sweep:
    """Runs a module's ``main`` with each call failing in turn; the last run is whole."""

    def swept(
        module: str, arguments: list[str], op: int, code: int, most: int, under: str = "work"
    ) -> Any:
        asked = {
            "under": str(tmp_path / under),
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
        runs = json.loads(done.stdout)
        for run in runs:
            assert [name for name in run["files"] if TEMPORARY.search(name)] == [], run["said"]
        return runs

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
    runs: list[dict[str, Any]],
    program: str,
    strerror: str,
    among: set[str],
    most: int = 1,
    statuses: tuple[int, ...] = (2,),
) -> None:
    """Each failing run is one line and status 2; what has its name is what a whole run writes."""
    *failing, whole = runs
    assert whole["status"] == 0, whole["said"]
    assert len(failing) >= 2
    for number, run in enumerate(failing):
        assert run["status"] in statuses, (number, run)
        lines = [line for line in run["said"].splitlines() if line.startswith(program + ": ")]
        # a scan that cannot be written, and the report that was to tell of it
        assert 1 <= len(lines) <= most, (number, run["said"])
        assert all(strerror in line and "/" in line for line in lines), (number, run["said"])
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
    runs = trainings(sweep, tmp_path / "work", cache, WRITE, errno.ENOSPC, 12)
    check(runs, "poan-train", "No space left on device", {"net.pt"})
    assert not any("net.pt" in run["files"] for run in runs[:5])


def test_volumes_that_their_server_lost_are_one_line_of_a_training(
    sweep: Sweep, before: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "elsewhere"
    runs = trainings(sweep, tmp_path / "work", cache, READ, errno.ESTALE, 8)
    check(runs, "poan-train", "Stale file handle", {"net.pt"})


@pytest.fixture
def checkpoint(before: Path, tiny_export: tuple[Path, Path]) -> Path:
    """A network of no training, there before each run; where the run finds it."""
    shutil.copy(tiny_export[0], before.parent / "tiny.pt")
    return before.parents[1] / "work/tiny.pt"


def evaluations(sweep: Sweep, checkpoint: Path, calls: int, error: int) -> list[dict[str, Any]]:
    """An evaluation for each failing call; the cache's folders appear whole."""
    work = checkpoint.parent
    arguments = ["--ckpt", str(checkpoint), "--data", str(work / "data"), "--lr-model", "bicubic"]
    arguments += ["--every", "4", "--cache", str(work / "cache")]
    arguments += ["--json", str(work / "e.json"), "--png", str(work / "e.png")]
    runs = sweep("poan_train.evaluate", arguments, calls, error, 8)
    for run in runs:
        run["files"] = {k: v for k, v in run["files"].items() if not k.startswith("cache/")}
    return runs


def test_a_full_disk_at_any_write_of_an_evaluation_is_one_line(
    sweep: Sweep, checkpoint: Path
) -> None:
    runs = evaluations(sweep, checkpoint, WRITE, errno.ENOSPC)
    check(runs, "poan-eval", "No space left on device", set())
    assert {"e.json", "e.png"} <= set(runs[-1]["files"])
    assert not any("e.json" in run["files"] for run in runs[:5])


def test_files_that_their_server_lost_are_one_line_of_an_evaluation(
    sweep: Sweep, checkpoint: Path
) -> None:
    runs = evaluations(sweep, checkpoint, READ, errno.ESTALE)
    check(runs, "poan-eval", ": Stale file handle", set())
    said = [run["said"] for run in runs]
    for name in ("tiny.pt: cannot be read", "T2w.nii.gz: cannot be read", "work/cache/"):
        assert any(name in line for line in said), said


@pytest.mark.parametrize(("calls", "error"), [(WRITE, errno.ENOSPC), (READ, errno.ESTALE)])
def test_a_failing_disk_is_one_line_of_a_bench(
    sweep: Sweep, before: Path, tmp_path: Path, nearest_x2: Path, calls: int, error: int
) -> None:
    work = tmp_path / "work"
    arguments = [str(nearest_x2), "--iterations", "2", "--no-cold", "--json", str(work / "b.json")]
    arguments += ["--scan", str(work / "data/sub-1_T2w.nii.gz"), "--plot", str(work / "b.png")]
    arguments += ["--timeline", str(work / "t.json")]
    written = {"b.json", "b.png", "t.json"}
    runs = sweep("poan_runtime.commands.bench", arguments, calls, error, 12)
    check(runs, "poan-bench", os.strerror(error), written)  # they hold times
    assert written <= set(runs[-1]["files"])
    assert "b.json" not in runs[0]["files"]


@pytest.mark.parametrize(("calls", "error"), [(WRITE, errno.ENOSPC), (READ, errno.ESTALE)])
def test_a_failing_disk_is_a_line_for_each_scan_of_a_cohort(
    sweep: Sweep, before: Path, tmp_path: Path, nearest_x2: Path, calls: int, error: int
) -> None:
    raw, work = before.parent / "raw", tmp_path / "work"
    for number in (1, 2):
        anat = raw / f"sub-{number}/anat"
        anat.mkdir(parents=True)
        (before / f"sub-{number}_T2w.nii.gz").rename(anat / f"sub-{number}_T2w.nii.gz")
    (raw / "dataset_description.json").write_text('{"Name": "made", "BIDSVersion": "1.10.0"}')
    arguments = [str(work / "raw"), str(work / "out"), "participant", "--n-procs", "1"]
    arguments += ["--model", str(nearest_x2), "--threads", "1", "--backend", "onnxruntime"]
    runs = sweep("poan_runtime.commands.bids", arguments, calls, error, 12)
    records = {f"out/poan/records/sub-{number}_T2w.json" for number in (1, 2)}
    check(runs, "poan-bids", os.strerror(error), records, 2, (1, 2))  # 1: scans failed
    for run in runs[:-1]:  # the sidecar says that a scan is done
        for name in run["files"]:
            if name.endswith("desc-sr_T2w.json"):
                assert name.replace(".json", ".nii.gz") in run["files"]


@pytest.mark.slow
def test_a_full_disk_at_writes_of_an_export_leaves_the_earlier_one(
    sweep: Sweep, checkpoint: Path, tiny_export: tuple[Path, Path]
) -> None:
    work = checkpoint.parent
    earlier = checkpoint.parents[1] / "before/net"
    shutil.copytree(tiny_export[1], earlier)
    old = {f"net/{file.name}": sha256_of(file) for file in earlier.iterdir()}
    arguments = ["--ckpt", str(checkpoint), "--tile", "12", "--halo", "1", "--overlap", "2"]
    arguments += ["--engine", "none", "--allow-worse", "--out", str(work / "net")]
    runs = sweep("poan_export.cli", arguments, WRITE, errno.ENOSPC, 8)
    for run in runs[:-1]:  # under its name, or put aside for the next start where that is refused
        kept = {re.sub(ASIDE, "net/", name): file for name, file in run["files"].items()}
        assert {k: v for k, v in kept.items() if k.startswith("net/")} == old, run
        run["files"], run["said"] = kept, run["said"].splitlines()[-1]  # after its progress
    check(runs, "poan-export", "No space left on device", set(old))
    assert any("/net: cannot be written: No space" in run["said"] for run in runs)
    assert "net/model.onnx" in runs[-1]["files"]


@pytest.mark.slow
def test_files_that_their_server_lost_are_one_line_of_an_export(
    sweep: Sweep, checkpoint: Path, tiny_export: tuple[Path, Path]
) -> None:
    """The checkpoint, and the scans for the gate's tiles."""
    work = checkpoint.parent
    before = checkpoint.parents[1] / "before"
    (before / "tiny.pt").rename(before / "data/tiny.pt")
    shutil.copytree(tiny_export[1], before / "net")
    old = {f"net/{file.name}": sha256_of(file) for file in tiny_export[1].iterdir()}
    arguments = ["--ckpt", str(work / "data/tiny.pt"), "--tile", "12", "--halo", "1"]
    arguments += ["--overlap", "2", "--engine", "none", "--allow-worse"]
    arguments += ["--parity-data", str(work / "data"), "--out", str(work / "net")]
    runs = sweep("poan_export.cli", arguments, READ, errno.ESTALE, 12, "work/data")
    for run in runs[:-1]:
        assert {k: v for k, v in run["files"].items() if k.startswith("net/")} == old, run
        run["said"] = run["said"].splitlines()[-1]  # after its progress
    check(runs, "poan-export", ": cannot be read: Stale file handle", set(old))
    for name in ("data/tiny.pt", "T2w.nii.gz"):
        assert any(name in run["said"] for run in runs[:-1])
