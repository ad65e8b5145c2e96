"""Processes that take scans: how many memory allows, and what happens where one dies."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poan_runtime.batch import workers as module
from poan_runtime.batch.bids import CONTRASTS, find_scans
from poan_runtime.batch.one_scan import Cohort, Result
from poan_runtime.batch.workers import Workers
from poan_runtime.engines.backend import EngineOptions
from poan_runtime.network import Settings

NAMES = [f"sub-{i}/anat/sub-{i}_T2w.nii.gz" for i in range(4)]


@pytest.fixture
def cohort(make_dataset: Any, nearest_x2: Path, tmp_path: Path) -> Cohort:
    return Cohort(
        dataset=make_dataset(NAMES),
        out=tmp_path / "out",
        models=dict.fromkeys(CONTRASTS, str(nearest_x2)),
        settings=Settings(threads=1),
        options=EngineOptions(threads=1),
    )


def dying(names: set[str], once: Path | None = None) -> Any:
    """What a process runs: it kills itself at some scans, at most once if ``once`` is a path."""

    def process(cohort: Cohort, scan: Any, networks: Any) -> Result:
        if scan.stem in names and (once is None or not once.exists()):
            if once is not None:
                once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Result(stem=scan.stem, state="done", peak_bytes=1)

    return process


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes are forked, so that they run what a test put in place of `process`."""
    context = module.multiprocessing.get_context
    monkeypatch.setattr(module.multiprocessing, "get_context", lambda kind: context("fork"))


@pytest.mark.usefixtures("forked")
def test_a_scan_whose_process_was_killed_is_tried_again(
    cohort: Cohort, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "process", dying({"sub-1_T2w"}, tmp_path / "died"))
    found = [*Workers(cohort, 2).results(find_scans(cohort.dataset))]
    assert sorted((result.stem, result.state) for result in found) == [
        (f"sub-{i}_T2w", "done") for i in range(4)
    ]


@pytest.mark.usefixtures("forked")
def test_a_scan_that_kills_every_process_fails_alone(
    cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "process", dying({"sub-1_T2w"}))
    found = {
        result.stem: result for result in Workers(cohort, 2).results(find_scans(cohort.dataset))
    }
    assert {stem for stem, result in found.items() if result.state == "done"} == {
        "sub-0_T2w",
        "sub-2_T2w",
        "sub-3_T2w",
    }
    assert "ended 2 times (killed: out of memory?)" in found["sub-1_T2w"].message
    assert (cohort.out / "poan/records/sub-1_T2w.json").is_file()


def test_memory_lets_one_process_begin_and_then_as_many_as_fit(cohort: Cohort) -> None:
    workers = Workers(cohort, 8, memory=1000)
    assert workers.allowed() == 1
    workers._peak = 300
    assert workers.allowed() == 3  # 3 x 1.1 x 300 = 990
    workers._peak = 400
    assert workers.allowed() == 2
    workers._peak = 5000
    assert workers.allowed() == 1
    assert Workers(cohort, 8).allowed() == 8


def test_no_more_processes_run_than_memory_allows(
    cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = []
    start = Workers._start

    def counted(self: Workers) -> Any:
        started = start(self)
        most.append(len(self._running))
        return started

    monkeypatch.setattr(Workers, "_start", counted)
    scans = find_scans(cohort.dataset)
    # a process takes more than 1 MiB: one runs at a time
    states = [result.state for result in Workers(cohort, 3, memory=1 << 20).results(scans)]
    assert states == ["done"] * 4
    assert max(most) == 1


PARENT = """
import multiprocessing, os, signal, threading
from poan_runtime.batch.workers import _die_with_parent

def at_work_for_ever():
    _die_with_parent()
    os.write(1, f"{os.getpid()}\\n".encode())
    threading.Event().wait()

if __name__ == "__main__":
    multiprocessing.get_context("fork").Process(target=at_work_for_ever).start()
    threading.Event().wait()
"""


def test_a_process_at_work_ends_with_its_parent(repository: Path, tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        env={**os.environ, "PYTHONPATH": str(repository)},
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.stdout.close()  # not read to its end: the child would hold it open
    parent.kill()
    parent.wait()
    for _ in range(600):
        if not Path(f"/proc/{child}/cmdline").exists():
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    raise AssertionError("it outlived its parent")


def test_how_a_process_ended_is_told_where_there_is_no_sigkill(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on Windows."""
    monkeypatch.delattr(module.signal, "SIGKILL")
    assert module._how(SimpleNamespace(exitcode=1)) == "exit status 1"
