"""A cohort that is killed again and again, and one on Slurm: does each scan come out once?

    python -m benchmarks.cohort --scans 200 --kills 10

Makes small scans, super-resolves them by poan-run for reference, then by `poan-bids --n-procs 2`
undisturbed, by the same with ``kill -9`` (the command, or one of its processes, in turns), and by
`poan-bids --slurm` with a task killed (where munge and slurm-wlm are installed, as root). Each
result is compared byte for byte. Writes results/cohort/cohort.json.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from benchmarks.record import RESULTS, commit, machine
from poan_runtime.files import WholeFile

SHAPE = (64, 60, 8)
TASKS = 4
MANY = 60
"""Empty tasks with which the scheduler's rate is measured."""
ROOT = Path(__file__).resolve().parents[1]


def make_dataset(root: Path, scans: int) -> list[str]:
    """A raw dataset of two contrasts, seeded; the scans' paths in it."""
    root.mkdir()
    about = {"Name": "made", "BIDSVersion": "1.10.0"}
    (root / "dataset_description.json").write_text(json.dumps(about))
    rng, names = np.random.default_rng(0), []
    for index in range(scans):
        suffix = ("T1w", "T2w")[index % 2]
        name = f"sub-{index // 2:03}/anat/sub-{index // 2:03}_{suffix}.nii.gz"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        data = rng.integers(1, 2000, SHAPE).astype(np.int16)
        nib.save(nib.Nifti1Image(data, np.diag([0.9, 0.9, 4.0, 1.0])), root / name)
        names.append(name)
    return names


def reference(raw: Path, names: list[str], out: Path) -> dict[str, bytes]:
    """What poan-run makes of each scan, by name."""
    out.mkdir()
    for suffix, model in (("T1w", "t1_x2"), ("T2w", "t2_x2")):
        scans = [str(raw / name) for name in names if suffix in name]
        command = [sys.executable, "-m", "poan_runtime.commands.run", model, *scans]
        subprocess.run([*command, "-o", f"{out}/"], check=True, stdout=subprocess.DEVNULL)
    return {
        name: (out / Path(name).name.replace("_T", "_desc-sr_T")).read_bytes()
        for name in names  # sub-000_T1w.nii.gz becomes sub-000_desc-sr_T1w.nii.gz
    }


def compare(out: Path, expected: dict[str, bytes]) -> dict[str, int]:
    """How many results are there, are the reference's bytes, and what else lies beside them."""
    same = 0
    for name, content in expected.items():
        stem, _, suffix = name.removesuffix(".nii.gz").rpartition("_")
        result = out / f"{stem}_res-2x_desc-sr_{suffix}.nii.gz"
        same += result.is_file() and result.read_bytes() == content
    there = len(list(out.glob("sub-*/anat/*.nii.gz")))
    left = len(list(out.rglob("*.poan-partial")))
    return {"expected": len(expected), "there": there, "same_bytes": same, "left_over": left}


def bids(raw: Path, out: Path, *arguments: str) -> list[str]:
    """The command line of poan-bids."""
    module = [sys.executable, "-m", "poan_runtime.commands.bids"]
    return [*module, str(raw), str(out), "participant", *arguments]


def children_of(process: int) -> list[int]:
    """Processes that a process has started."""
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(number) for number in text.split()]


def killed_run(raw: Path, out: Path, kills: int, scans: int) -> dict[str, Any]:
    """Run, kill, and type the command again, until ``kills`` are spent; then let it finish."""
    rng = random.Random(0)
    command = bids(raw, out, "--n-procs", "2")
    start, done, spent = time.perf_counter(), 0, 0
    runs = 0
    while True:
        runs += 1
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        # killed after so many new scans: the last kill falls well before the end
        wait = max(1, round(rng.uniform(0.3, 1.3) * scans / (kills + 2)))
        fresh = 0
        for line in process.stdout:
            if ": done in" not in line:
                continue
            done, fresh = done + 1, fresh + 1
            if spent < kills and fresh == wait:
                fresh = 0
                spent += 1
                workers = children_of(process.pid)
                victim = process.pid if spent % 2 or not workers else rng.choice(workers)
                os.kill(victim, signal.SIGKILL)
        if process.wait() == 0 and spent == kills:
            break
    return {"seconds": time.perf_counter() - start, "kills": spent, "runs": runs, "told": done}


def slurm_run(raw: Path, out: Path, work: Path) -> dict[str, Any]:
    """An array job of `TASKS` tasks of which one is killed; and the scheduler's own rate."""
    from tests.runtime.batch.one_node import one_node, state, until

    work.mkdir()
    with one_node(work) as environment:
        inside = {**environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        start = time.perf_counter()
        command = bids(raw, out, "--tasks", str(TASKS), "--slurm")
        told = subprocess.run(command, env=inside, check=True, capture_output=True, text=True)
        last = told.stdout.split()[-1]
        until(lambda: len(list(out.glob("sub-*/anat/*.json"))) > 4, 300)
        victims = [pid for pid in pids() if f"{out} participant --share" in line_of(pid)]
        os.kill(victims[0], signal.SIGKILL)
        until(lambda: state(environment, last) in ("COMPLETED", "FAILED"), 1800)
        seconds = time.perf_counter() - start
        many = time.perf_counter()
        wrapped = ["sbatch", "--wait", f"--array=1-{MANY}", "--output=/dev/null", "--wrap=true"]
        subprocess.run(wrapped, env=environment, check=True, capture_output=True)
        rate = MANY / (time.perf_counter() - many)
    lines = [
        line
        for path in (out / "poan/slurm").glob("*.log")
        for line in path.read_text().splitlines()
        if ": done in" in line
    ]
    return {"seconds": seconds, "tasks": TASKS, "told": len(lines), "empty_tasks_per_s": rate}


def pids() -> list[int]:
    """Numbers of all processes."""
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def line_of(pid: int) -> str:
    """A process's command line; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def records(out: Path) -> dict[str, Any]:
    """Medians over the cohort's records."""
    found = [json.loads(path.read_text()) for path in (out / "poan/records").glob("*.json")]
    return {
        "scan_seconds": float(np.median([one["seconds"] for one in found])),
        "bytes_in": float(np.median([one["bytes"]["in"] for one in found])),
        "bytes_out": float(np.median([one["bytes"]["out"] for one in found])),
        "peak_bytes": max(one["peak_bytes"] for one in found),
    }


def main() -> None:
    """See the module."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--scans", type=int, default=200)
    p.add_argument("--kills", type=int, default=10)
    args = p.parse_args()
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="poan-cohort-") as folder:
        work = Path(folder)
        work.chmod(0o755)
        raw = work / "raw"
        names = make_dataset(raw, args.scans)
        start = time.perf_counter()
        expected = reference(raw, names, work / "reference")
        found: dict[str, Any] = {"scans": args.scans, "shape": SHAPE}
        found["poan_run_seconds"] = time.perf_counter() - start

        start = time.perf_counter()
        subprocess.run(
            bids(raw, work / "calm", "--n-procs", "2"), check=True, stdout=subprocess.DEVNULL
        )
        found["calm"] = {"seconds": time.perf_counter() - start}
        found["calm"] |= compare(work / "calm", expected) | records(work / "calm")
        start = time.perf_counter()
        subprocess.run(
            bids(raw, work / "calm", "--n-procs", "2"), check=True, stdout=subprocess.DEVNULL
        )
        found["all_skipped_seconds"] = time.perf_counter() - start

        found["killed"] = killed_run(raw, work / "killed", args.kills, args.scans)
        found["killed"] |= compare(work / "killed", expected)
        if os.getuid() == 0 and shutil.which("sbatch"):
            found["slurm"] = slurm_run(raw, work / "slurm", work / "node")
            found["slurm"] |= compare(work / "slurm", expected)
    (RESULTS / "cohort").mkdir(exist_ok=True)
    document = {"commit": commit(), "machine": machine(), **found}
    with WholeFile(RESULTS / "cohort/cohort.json") as file:
        file.write(json.dumps(document, indent=1).encode() + b"\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
