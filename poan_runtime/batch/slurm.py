"""A cohort as a Slurm array job: each task takes a share of the scans, a last job what is left.

A task that breaks, is killed, or comes near its time limit is put back into the queue; what it
has made is not made again. Should the batch script itself be killed, nobody can put it back: the
last job, which runs after the array however that ended, takes all scans that are not done, those
that failed among them, and writes the cohort's report.
"""

import dataclasses
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from poan_runtime.batch.derivative import WORK
from poan_runtime.errors import PoanError
from poan_runtime.files import WholeFile

OURS = {"--slurm": 0, "--tasks": 1, "--partition": 1, "--time": 1, "--retries": 1, "--sbatch": 1}
"""Options that speak to Slurm, not to a task, and how many values each takes."""
WARNING_SECONDS = 60
"""How long before its time limit a task is told."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """An array job: ``arguments`` are poan-bids's own; ``memory`` in bytes, for each task."""

    out: Path
    arguments: tuple[str, ...]
    tasks: int
    retries: int
    cores: int
    partition: str | None = None
    time: str | None = None
    memory: int | None = None
    extra: tuple[str, ...] = ()


def without_slurm(argv: Sequence[str]) -> list[str]:
    """The command line of one task.

    >>> without_slurm(["a", "b", "participant", "--slurm", "--tasks", "3", "--time=1:00"])
    ['a', 'b', 'participant']
    """
    kept, skip = [], 0
    for text in argv:
        if skip:
            skip -= 1
        elif text in OURS:
            skip = OURS[text]
        elif text.partition("=")[0] not in OURS:
            kept.append(text)
    return kept


def submit(request: Request) -> tuple[str, str]:
    """Write both scripts and submit them; the jobs' numbers.

    Raises PoanError where sbatch is missing or refuses.
    """
    if shutil.which("sbatch") is None:
        raise PoanError("--slurm: there is no sbatch here; run it where Slurm is installed")
    folder = request.out / WORK / "slurm"
    folder.mkdir(parents=True, exist_ok=True)
    array = _write(folder / "array.sbatch", array_script(request, folder))
    number = _sbatch(array)
    last = _write(folder / "last.sbatch", last_script(request, folder))
    return number, _sbatch(last, f"--dependency=afterany:{number}")


def array_script(request: Request, folder: Path) -> str:
    """The batch script of the array's tasks."""
    share = f'--share "$SLURM_ARRAY_TASK_ID/{request.tasks}"'
    return _script(
        request,
        [f"--array=1-{request.tasks}", f"--output={folder.resolve()}/%A_%a.log"],
        f"{_command(request.arguments)} {share}",
    )


def last_script(request: Request, folder: Path) -> str:
    """The batch script of the job that comes last."""
    bids, out = _places(request.arguments)
    report = _command((bids, out, "group"))
    return _script(
        request,
        [f"--output={folder.resolve()}/%j-last.log"],
        _command(request.arguments),
        after=f"{report}\n",
    )


def _script(request: Request, own: list[str], command: str, after: str = "") -> str:
    """A script that puts itself back into the queue when its command is killed."""
    options = [
        "--job-name=poan-bids",
        "--requeue",
        "--open-mode=append",
        f"--cpus-per-task={request.cores}",
        f"--signal=B:USR1@{WARNING_SECONDS}",
        *own,
    ]
    if request.partition is not None:
        options.append(f"--partition={request.partition}")
    if request.time is not None:
        options.append(f"--time={request.time}")
    if request.memory is not None:
        options.append(f"--mem={-(-request.memory // 2**20)}M")
    options += request.extra
    lines = "\n".join(f"#SBATCH {option}" for option in options)
    return SCRIPT.format(options=lines, retries=request.retries, command=command, after=after)


SCRIPT = """\
#!/bin/bash
{options}
again() {{
    if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {retries} ]; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
}}
trap 'kill "$child"; wait "$child"; again; exit 1' USR1
{command} &
child=$!
wait "$child"
status=$?
{after}if [ "$status" -gt 2 ]; then
    again
fi
exit "$status"
"""
"""1: some scans failed, which the last job tries once more. 2: what the user must mend."""


def _command(arguments: Sequence[str]) -> str:
    """poan-bids under the Python that runs now, in the folder where sbatch was typed."""
    return shlex.join([sys.executable, "-m", "poan_runtime.commands.bids", *arguments])


def _places(arguments: Sequence[str]) -> tuple[str, str]:
    """The dataset and the derivative among the arguments, which stand before the level."""
    level = arguments.index("participant")
    return arguments[level - 2], arguments[level - 1]


def _write(path: Path, text: str) -> Path:
    with WholeFile(path) as file:
        file.write(text.encode())
    return path


def _sbatch(script: Path, *options: str) -> str:
    found = subprocess.run(
        ["sbatch", "--parsable", *options, str(script)], capture_output=True, text=True
    )
    if found.returncode != 0:
        reason = (found.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise PoanError(f"--slurm: sbatch refused {script}: {reason}")
    return found.stdout.strip().partition(";")[0]
