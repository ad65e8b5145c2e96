"""Kill every command that writes at random moments: what has its final name is whole.

    python -m benchmarks.kills --count 200 --json benchmarks/results/kills.json

Each command runs once undisturbed, which gives its time. Then it is started again and again and
gets SIGKILL, SIGTERM or SIGINT at a random moment of that time. After each kill every output that
is there is checked; after the last one the command runs undisturbed again, and no temporary file
may be left beside its output.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import nibabel as nib
import numpy as np

from benchmarks.record import tell
from poan_runtime.files import sha256_of
from poan_runtime.models.manifest import read_manifest
from poan_train.checkpoint import read_checkpoint

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SHARES = {"run": 0.5, "export": 0.15, "train": 0.15, "eval": 0.1, "bench": 0.1}
STARTED_S = 0.4
"""Python itself has started by then; before it nothing of ours runs."""
ROOT = Path(__file__).resolve().parent.parent


Check = Callable[[Path], None]


@dataclass(frozen=True, kw_only=True)
class Command:
    """What is started, what it writes below ``folder``, and how that is checked."""

    folder: Path
    words: list[str]
    outputs: list[str]
    check: Check


def make_scans(folder: Path) -> list[Path]:
    """Four T2 volumes of smooth seeded shapes."""
    folder.mkdir()
    y, x = np.mgrid[:64, :60]
    random = np.random.default_rng(1)
    for number in range(4):
        slices = np.zeros((64, 60, 8), np.int16)
        for z in range(8):
            for _ in range(12):
                cy, cx, r = random.uniform(8, 52), random.uniform(8, 52), random.uniform(2, 9)
                slices[..., z][(y - cy) ** 2 + (x - cx) ** 2 < r**2] += random.integers(50, 400)
        slices += random.integers(1, 30, slices.shape).astype(np.int16)
        image = nib.Nifti1Image(slices, np.diag([1.0, 1.0, 4.0, 1.0]))
        nib.save(image, folder / f"sub-{number}_T2w.nii.gz")
    return sorted(folder.iterdir())


def commands(work: Path) -> dict[str, Command]:
    """All commands that write, with small inputs below ``work``, which has no blank in its name."""
    scans, checkpoint = make_scans(work / "scans"), work / "net.pt"
    quick = f"--data {work}/scans --scale 2 --batch 2 --patch 8 --precision fp32"
    first = f"-m poan_train {quick} --steps 2 --out {checkpoint}"
    subprocess.run(
        [sys.executable, *first.split()], check=True, capture_output=True, env=environment()
    )
    for name in SHARES:
        (work / name).mkdir()

    def command(name: str, start: str, options: str, outputs: list[str], check: Check) -> Command:
        words = f"{start} {options}".split()
        return Command(folder=work / name, words=words, outputs=outputs, check=check)

    names = " ".join(map(str, scans))
    fine = [f"{scan.name[:5]}_desc-sr_T2w.nii.gz" for scan in scans]
    return {
        "run": command(
            "run",
            "poan_runtime.commands.run main",
            f"t2_x2 {names} -o {work}/run/ --overwrite --report {work}/run/report.json",
            [*fine, "report.json"],
            check_scan,
        ),
        "export": command(
            "export",
            "poan_export.cli main",
            f"--ckpt {checkpoint} --tile 12 --halo 1 --overlap 2 --engine none --allow-worse "
            f"--out {work}/export/net",
            ["net"],
            check_export,
        ),
        "train": command(
            "train",
            "poan_train.start train",
            f"{quick} --steps 6 --validate-every 2 --overwrite --out {work}/train/net.pt",
            ["net.pt"],
            check_checkpoint,
        ),
        "eval": command(
            "eval",
            "poan_train.start evaluate",
            f"--ckpt {checkpoint} --data {work}/scans --lr-model bicubic --every 4 "
            f"--json {work}/eval/e.json",
            ["e.json"],
            check_json,
        ),
        "bench": command(
            "bench",
            "poan_runtime.commands.bench main",
            f"t2_x2 --iterations 2 --no-cold --scan-iterations 0 --json {work}/bench/b.json",
            ["b.json"],
            check_json,
        ),
    }


def check_scan(path: Path) -> None:
    """A NIfTI file that can be read to its end, or a report."""
    if path.suffix == ".json":
        return check_json(path)
    image: Any = nib.load(path)
    assert np.asarray(image.dataobj).shape == (128, 120, 8)
    return None


def check_export(path: Path) -> None:
    """Every file that the manifest lists is there with its hash."""
    for file in read_manifest(path).files:
        assert sha256_of(path / file.name) == file.sha256


def check_checkpoint(path: Path) -> None:
    """A checkpoint with the state to resume from."""
    assert read_checkpoint(path)[2] is not None


def check_json(path: Path) -> None:
    """A whole JSON document."""
    json.loads(path.read_text())


def environment() -> dict[str, str]:
    """One thread, this source tree."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start(command: Command) -> "subprocess.Popen[bytes]":
    """Start a command; Ctrl-C reaches it though nobody sits at a terminal."""
    module, function, *words = command.words
    code = f"import sys; from {module} import {function}; sys.exit({function}())"
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def kill_at_random(command: Command, seconds: float, random: Random) -> dict[str, Any]:
    """One kill; what was there afterwards, and whether it is whole."""
    number = random.choice(SIGNALS)
    at = random.uniform(STARTED_S, seconds)
    process = start(command)
    time.sleep(at)
    process.send_signal(number)
    _, error = process.communicate()
    partial, there = [], 0
    for name in command.outputs:
        path = command.folder / name
        if path.exists():
            there += 1
            try:
                command.check(path)
            except Exception as broken:  # whatever is wrong with it
                partial.append(f"{name}: {broken}")
    return {
        "signal": number.name,
        "at_s": round(at, 2),
        "status": process.returncode,
        "outputs": there,
        "partial": partial,
        "traceback": b"Traceback" in error and number != signal.SIGKILL,
        "stderr": error.decode(errors="replace")[-300:] if b"Traceback" in error else "",
    }


def left_in(folder: Path) -> list[str]:
    """Temporary files and folders."""
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def torture(name: str, command: Command, count: int, random: Random) -> dict[str, Any]:
    """Kill one command ``count`` times."""
    begun = time.perf_counter()
    assert start(command).wait() == 0, name
    seconds = time.perf_counter() - begun
    trials = [kill_at_random(command, seconds, random) for _ in range(count)]
    before = len(left_in(command.folder))
    assert start(command).wait() == 0, name
    return {
        "command": name,
        "undisturbed_s": round(seconds, 2),
        "kills": count,
        "by_signal": Counter(trial["signal"] for trial in trials),
        "finished_before": sum(trial["status"] == 0 for trial in trials),
        "partial_outputs": [trial for trial in trials if trial["partial"]],
        "tracebacks": [trial for trial in trials if trial["traceback"]],
        "temporary_files_before_the_last_run": before,
        "temporary_files_after_it": left_in(command.folder),
    }


def main() -> int:
    p = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=__doc__)
    p.add_argument("--count", type=int, default=200)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--only", choices=tuple(SHARES))
    p.add_argument("--json", type=Path)
    args = p.parse_args()
    random = Random(args.seed)
    with tempfile.TemporaryDirectory() as work:
        found = [
            torture(name, command, max(1, round(args.count * SHARES[name])), random)
            for name, command in commands(Path(work)).items()
            if args.only in (None, name)
        ]
    tell({"seed": args.seed, "commands": found}, args.json)
    bad = any(
        row["partial_outputs"] or row["tracebacks"] or row["temporary_files_after_it"]
        for row in found
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
