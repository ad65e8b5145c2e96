"""Commands run while the wall clock is set an hour forth and back, ten times a second."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Clocked = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def clocked(shim: Callable[[Path], Path], repository: Path) -> Clocked:
    """Runs a module, or code, under the clock."""
    library = shim(Path(__file__).with_name("shim.c"))

    def run(*words: object) -> "subprocess.CompletedProcess[str]":
        paths = os.pathsep.join([str(repository), *sys.path])
        environment = {"LD_PRELOAD": str(library), "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, *map(str, words)],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


def test_the_clock_of_these_tests_jumps_and_the_monotonic_one_does_not(clocked: Clocked) -> None:
    code = (
        "import time, json\n"
        "walls, steady = set(), [time.monotonic()]\n"
        "while len(walls) < 2:\n"
        "    walls.add(round(time.time() / 3600))\n"
        "    steady.append(time.monotonic())\n"
        "print(json.dumps([max(walls) - min(walls), steady == sorted(steady)]))"
    )
    assert json.loads(clocked("-c", code).stdout) == [2, True]


def test_a_run_reports_its_true_times(
    clocked: Clocked, nearest_x2: Path, make_scan: Callable[..., Path], tmp_path: Path
) -> None:
    report = tmp_path / "sr.json"
    words = [nearest_x2, make_scan(shape=(60, 50, 20)), "-o", tmp_path / "sr.nii"]
    done = clocked("-m", "poan_runtime.commands.run", *words, "--report", report)
    assert done.returncode == 0, done.stderr
    seconds = json.loads(report.read_text())["scans"][0]["seconds"]
    assert len(seconds) >= 3
    assert all(0 <= value < 300 for value in seconds.values())


@pytest.mark.slow
def test_a_training_of_some_seconds_takes_them(
    clocked: Clocked, scan_folder: Path, tmp_path: Path
) -> None:
    words = ["--data", str(scan_folder), "--scale", "2", "--batch", "1", "--patch", "8"]
    words += [
        "--precision",
        "fp32",
        "--minutes",
        "0.02",
        "--no-export-trial",
        "--out",
        str(tmp_path / "net.pt"),
    ]
    words += ["--set", "channels=4", "--set", "blocks=1", "--set", "poab_after=1"]
    done = clocked("-m", "poan_train", *words)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "net.jsonl").read_text().splitlines()]
    seconds = [record["seconds"] for record in records]
    assert seconds == sorted(seconds)
    assert 1.2 <= seconds[-1] < 300
    assert len(records) >= 2


WALL = re.compile(r"\btime\.time\b|from time import .*\btime\b|\.now\(|\.today\(|\.utcnow\(")
DATED = {"clock.py": 1, "receive.py": 1, "log.py": 1, "derived.py": 1}
"""Where the wall clock is read, and how often: to date what is made, and once as a start."""


def test_the_wall_clock_only_dates_what_is_made(repository: Path) -> None:
    found = {
        path.name: len(WALL.findall(path.read_text()))
        for package in ("poan_runtime", "poan_train", "poan_export")
        for path in (repository / package).rglob("*.py")
        if WALL.search(path.read_text())
    }
    assert found == DATED
