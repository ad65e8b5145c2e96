"""Who takes part: a name, the command that runs, and what its figures mean."""

import dataclasses
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import record
from poan_runtime.errors import PoanError

REFERENCE = "torch-eager"
COMPETITORS = (REFERENCE, "torch-compile", "onnxruntime", "openvino-f32", "openvino-bf16")
POAN = "poan-run"
LIKE_THE_REST = ("--overwrite", "--keep-negative", "--keep-measured", "off", "--native", "off")
"""Without what poan-run does to a result beside running the network, as its competitors."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What all contenders share. Lengths are LR voxels."""

    model: Path
    ckpt: Path
    onnx: Path
    lr: Path
    work: Path
    scale: int
    tile: int
    overlap: int
    batch: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contender:
    """A program to run; ``arguments`` are those of poan-run beside model, scan and output."""

    name: str
    arguments: tuple[str, ...] = ()
    model: Path | None = None
    """Of poan-run; None for the setting's."""

    @property
    def is_poan(self) -> bool:
        return self.name.startswith(POAN)

    def command(self, setting: Setting) -> list[str]:
        """Module and arguments."""
        out, times = str(self.output(setting)), str(self.times(setting))
        if self.is_poan:
            scan = [str(self.model or setting.model), str(setting.lr)]
            return [
                "poan_runtime.commands.run",
                *scan,
                "-o",
                out,
                "--report",
                times,
                *LIKE_THE_REST,
                *self.arguments,
            ]
        return [
            "benchmarks.whole_scan.competitor",
            self.name,
            *("--ckpt", str(setting.ckpt), "--onnx", str(setting.onnx), "--lr", str(setting.lr)),
            *("--out", out, "--times", times, "--tile", str(setting.tile)),
            *("--overlap", str(setting.overlap), "--batch", str(setting.batch)),
            *("--scale", str(setting.scale)),
        ]

    def output(self, setting: Setting) -> Path:
        return setting.work / f"{self.name}.nii.gz"

    def times(self, setting: Setting) -> Path:
        return setting.work / f"{self.name}.json"


def parse(names: str, poan: Sequence[str]) -> list[Contender]:
    """The competitors in ``names`` (with commas) and each ``NAME[@MODEL]=ARGUMENTS`` of poan-run.

    >>> parse("onnxruntime", ["=", "64@net=--precision fp32"])[1]
    Contender(name='poan-run-64', arguments=('--precision', 'fp32'), model=PosixPath('net'))
    """
    chosen = [name for name in names.split(",") if name]
    if unknown := set(chosen) - set(COMPETITORS):
        raise PoanError(
            f"--against: expected some of {', '.join(COMPETITORS)}, got {', '.join(unknown)}"
        )
    contenders = []
    for entry in poan:
        name, _, arguments = entry.partition("=")
        name, _, model = name.partition("@")
        contenders.append(
            Contender(
                name=f"{POAN}-{name}" if name else POAN,
                arguments=tuple(shlex.split(arguments)),
                model=Path(model) if model else None,
            )
        )
    return [*contenders, *(Contender(name=name) for name in chosen)]


def run(contender: Contender, setting: Setting) -> dict[str, Any]:
    """One sample: seconds from the start of the process to its end, its peak memory, its stages.

    ``taken_by_others`` is the share of all cores that ran other programs (and this one's compiler).

    Raises PoanError with the last line on stderr where it fails.
    """
    memory = setting.work / f"{contender.name}.memory.json"
    before = record.busy_s()
    wall_s = _run(contender, contender.command(setting), setting, memory)
    after = record.busy_s()
    facts = json.loads(memory.read_text("utf-8"))
    times = json.loads(contender.times(setting).read_text("utf-8"))
    others = (after - before - facts["cpu_s"]) / wall_s / (os.cpu_count() or 1)
    sample: dict[str, Any] = {"wall_s": wall_s, **facts, "taken_by_others": others}
    if contender.is_poan:
        scan = times["scans"][0]
        sample |= {"stages_s": scan["seconds"], "tiles": scan["tiles"], "plan": scan["plan"]}
        sample |= {"backend": times["backend"], "file": times["model"]}
    else:
        sample["stages_s"] = times
    return sample


def foresee(contender: Contender, setting: Setting) -> dict[str, Any]:
    """What ``poan-run --explain`` predicts for a contender that is poan-run."""
    plan, memory = setting.work / "explain.json", setting.work / "explain.memory.json"
    scan = [str(contender.model or setting.model), str(setting.lr), "--overwrite"]
    command = ["poan_runtime.commands.run", "--explain", *scan, "--report", str(plan)]
    explain_s = _run(contender, [*command, *contender.arguments], setting, memory)
    (found,) = json.loads(plan.read_text("utf-8"))["scans"]
    return {**found["predicted"], "timed": found["timed"], "explain_wall_s": explain_s}


def _run(contender: Contender, command: list[str], setting: Setting, memory: Path) -> float:
    """Run a module in a process of its own; its wall seconds."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "TORCHINDUCTOR_CACHE_DIR": str(setting.work / "inductor"),
    }
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.measured", str(memory), *command],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    wall_s = time.perf_counter() - start
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise PoanError(f"{contender.name}: exit status {done.returncode}: {reason}")
    return wall_s
