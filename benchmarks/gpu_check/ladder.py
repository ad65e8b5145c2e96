"""Rungs in processes of their own, each with a time limit; the JSON is whole after each."""

import dataclasses
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from poan_runtime.files import WholeFile

VERSION = 2
SKIPPED = 3
"""Exit status of a rung that has nothing to run on, and says why in its JSON."""
KEPT_CHARACTERS = 4000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rung:
    """A module's ``main(out)`` to run in a process of its own, and for how long at most."""

    name: str
    limit_s: float
    what: str


RUNGS = (
    Rung(name="versions", limit_s=60, what="driver, libraries, clocks"),
    Rung(name="smoke", limit_s=120, what="our CUDA module, lanes and graphs, with a small kernel"),
    Rung(name="tests", limit_s=1800, what="every test marked gpu"),
    Rung(name="torch_half", limit_s=600, what="the exported module in half against float64"),
    Rung(name="attention", limit_s=900, what="forms of the attention at tile 60 and 64"),
    Rung(name="onnxruntime", limit_s=900, what="the CUDA provider: parity and latency"),
    Rung(name="plan", limit_s=1800, what="poan-build, --verify and poan-bench of a plan"),
    Rung(name="scan", limit_s=900, what="a whole scan by poan-run"),
)
REHEARSED = (
    Rung(name="crash", limit_s=60, what="a rung that dies"),
    Rung(name="hang", limit_s=2, what="a rung that never ends"),
)


def climb(rungs: Sequence[Rung], out: Path) -> dict[str, Any]:
    """Run rungs in turn; a line as each ends, and ``out`` written anew."""
    document: dict[str, Any] = {"gpu_check_version": VERSION, "rungs": []}
    for rung in rungs:
        entry = {"name": rung.name, "what": rung.what, **run(rung)}
        document["rungs"].append(entry)
        with WholeFile(out) as file:
            file.write((json.dumps(document, indent=1) + "\n").encode())
        reason = f": {entry['reason']}" if entry.get("reason") else ""
        print(f"{rung.name:12} {entry['outcome']}{reason} ({entry['seconds']:.1f} s)", flush=True)
    return document


def run(rung: Rung) -> dict[str, Any]:
    """Outcome, seconds, the rung's own figures, and its last words where it did not pass."""
    with tempfile.TemporaryDirectory() as scratch:
        figures, log = Path(scratch) / "figures.json", Path(scratch) / "log"
        command = [sys.executable, "-m", "benchmarks.gpu_check.rung", rung.name, str(figures)]
        start = time.perf_counter()
        with log.open("wb") as words:
            outcome = ended(command, words, rung.limit_s)
        entry: dict[str, Any] = {"outcome": outcome, "seconds": time.perf_counter() - start}
        if figures.is_file():
            entry |= json.loads(figures.read_text("utf-8"))
        if outcome not in ("passed", "skipped"):
            entry["log"] = log.read_text("utf-8", errors="replace")[-KEPT_CHARACTERS:]
    return entry


def ended(command: Sequence[str], words: Any, limit_s: float) -> str:
    """How a process ended, in words."""
    try:
        done = subprocess.run(
            command, stdout=words, stderr=subprocess.STDOUT, check=False, timeout=limit_s
        )
    except subprocess.TimeoutExpired:
        return f"took more than {limit_s:.0f} s"
    if done.returncode < 0:
        return f"died of {signal.Signals(-done.returncode).name}"
    return {0: "passed", SKIPPED: "skipped"}.get(done.returncode, "failed")
