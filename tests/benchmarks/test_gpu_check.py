"""benchmarks/gpu_check.sh: a ladder whose JSON survives a crash, a hang and a missing GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_check import ladder
from benchmarks.gpu_check.__main__ import rehearsed
from benchmarks.gpu_check.ladder import REHEARSED, RUNGS, Rung, climb


@pytest.mark.slow
def test_a_rehearsal_without_a_gpu_skips_each_gpu_rung_with_its_reason(
    repository: Path, no_gpu: None, tmp_path: Path
) -> None:
    out = tmp_path / "gpu.json"
    done = subprocess.run(
        [str(repository / "benchmarks/gpu_check.sh"), str(out), "--rehearse"],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rungs = {rung["name"]: rung for rung in json.loads(out.read_text())["rungs"]}
    assert set(rungs) == {rung.name for rung in (*REHEARSED, *RUNGS)}
    assert rungs["crash"]["outcome"] == "died of SIGSEGV"
    assert rungs["hang"]["outcome"] == "took more than 2 s"
    assert rungs["versions"]["machine"]["python"]
    for name in {rung.name for rung in RUNGS} - {"versions"}:
        assert rungs[name]["outcome"] == "skipped"
        assert rungs[name]["reason"].startswith("no GPU")


def test_without_a_gpu_the_status_says_that_nothing_ran(
    repository: Path, no_gpu: None, tmp_path: Path
) -> None:
    done = subprocess.run(
        [str(repository / "benchmarks/gpu_check.sh"), "out.json", "--rungs", "versions,scan"],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": sys.executable},
        check=False,
    )
    (repository / "out.json").unlink(missing_ok=True)
    assert done.returncode == 3


def test_the_json_is_whole_before_the_next_rung_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that goes down in a rung keeps what the rungs before it found."""
    out, seen = tmp_path / "gpu.json", []

    def run(rung: Rung) -> dict[str, object]:
        seen.append(len(json.loads(out.read_text())["rungs"]) if out.exists() else 0)
        return {"outcome": "passed", "seconds": 0.0}

    monkeypatch.setattr(ladder, "run", run)
    climb(RUNGS[:3], out)
    assert seen == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, 0),
        ({"scan": "failed"}, 1),
        ({"crash": "passed"}, 1),
        ({"hang": "failed"}, 1),
        ({"versions": "skipped"}, 1),
    ],
)
def test_a_rehearsal_fails_where_a_rung_fails_or_a_crash_goes_unseen(
    change: dict[str, str], status: int
) -> None:
    good = {"crash": "died of SIGSEGV", "hang": "took more than 2 s", "versions": "passed"}
    assert rehearsed(good | {"scan": "skipped"} | change) == status


def test_every_rung_has_a_module_that_imports_here() -> None:
    """A typing error must not wait for the first GPU."""
    pytest.importorskip("cuda.bindings", reason="needs cuda-python")
    for rung in RUNGS[1:]:
        module = __import__(f"benchmarks.gpu_check.{rung.name}", fromlist=["run"])
        assert callable(module.run)
