"""`poan-bids --slurm`: the scripts, and a real Slurm of one node in which tasks are killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poan_runtime.batch.slurm import Request, array_script, last_script, without_slurm
from poan_runtime.commands.bids import main
from poan_runtime.commands.run import main as poan_run
from tests.runtime.batch.one_node import one_node, state, until

NAMES = [f"sub-{i}/anat/sub-{i}_T2w.nii.gz" for i in range(6)]
PATIENCE = 600
"""Seconds until a job that hangs is given up."""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a Slurm that runs."""
    folder = tmp_path_factory.mktemp("slurm")
    folder.chmod(0o755)
    with one_node(folder) as environment:
        yield environment


def test_a_task_gets_the_command_line_without_what_is_slurms() -> None:
    typed = ["raw", "o", "participant", "--slurm", "--n-procs", "2", "--tasks=9"]
    typed += ["--sbatch", "--account=a", "--partition", "p", "--model", "m"]
    assert without_slurm(typed) == ["raw", "o", "participant", "--n-procs", "2", "--model", "m"]


def test_options_reach_the_scripts(tmp_path: Path) -> None:
    request = Request(
        out=tmp_path,
        arguments=("my raw", "o", "participant"),
        tasks=5,
        retries=3,
        cores=4,
        partition="gpu",
        time="2:00:00",
        memory=(1 << 30) + 1,
        extra=("--gres=gpu:1",),
    )
    script = array_script(request, tmp_path)
    for option in ("array=1-5", "cpus-per-task=4", "partition=gpu", "time=2:00:00"):
        assert f"#SBATCH --{option}\n" in script
    assert "#SBATCH --mem=1025M\n" in script
    assert "#SBATCH --gres=gpu:1\n" in script
    command = f"{sys.executable} -m poan_runtime.commands.bids 'my raw' o participant"
    assert f'{command} --share "$SLURM_ARRAY_TASK_ID/5" &\n' in script
    last = last_script(request, tmp_path)
    assert "--array" not in last
    assert f"{command} &\n" in last
    assert "'my raw' o group\n" in last
    for text in (script, last):
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_without_slurm_one_line_says_so(
    make_dataset: Any,
    nearest_x2: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    arguments = [make_dataset(), tmp_path / "out", "participant", "--slurm", "--model", nearest_x2]
    assert main([*map(str, arguments)]) == 2
    assert capsys.readouterr().err == (
        "poan-bids: --slurm: there is no sbatch here; run it where Slurm is installed\n"
    )


def processes_of(text: str) -> list[int]:
    """Processes whose command line holds ``text``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it has ended
            continue
        if text in line:
            found.append(int(path.parent.name))
    return found


def submit(environment: dict[str, str], repository: Path, *arguments: object) -> tuple[str, str]:
    """The numbers of array job and last job."""
    command = [sys.executable, "-m", "poan_runtime.commands.bids", *map(str, arguments), "--slurm"]
    inside = {**environment, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    told = subprocess.run(command, env=inside, capture_output=True, text=True, check=True).stdout
    words = told.split()
    return words[4], words[-1]


@pytest.mark.integration
@pytest.mark.parametrize("victim", ["poan-bids", "the batch script"])
def test_a_cohort_comes_out_once_although_a_task_is_killed(
    victim: str,
    slurm: dict[str, str],
    make_dataset: Any,
    nearest_x2: Path,
    tmp_path: Path,
    repository: Path,
) -> None:
    dataset, out = make_dataset(NAMES), tmp_path / "out"
    array, last = submit(
        slurm, repository, dataset, out, "participant", "--model", nearest_x2, "--tasks", "2"
    )
    logs = out / "poan/slurm"
    log = logs / f"{array}_1.log"
    if victim == "poan-bids":
        task = f"{out} participant --model {nearest_x2} --share 1/2"
        until(lambda: bool(processes_of(task)), PATIENCE)
        os.kill(processes_of(task)[0], signal.SIGKILL)
    else:
        script = "slurm_script"
        until(lambda: bool(processes_of(f"{script}")), PATIENCE)
        first = min(processes_of(script))
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        os.kill(first, signal.SIGKILL)
        for child in children:
            os.kill(int(child), signal.SIGKILL)
    until(lambda: state(slurm, last) in ("COMPLETED", "FAILED", "CANCELLED"), PATIENCE)
    assert state(slurm, last) == "COMPLETED"
    made = [
        line
        for path in logs.glob("*.log")
        for line in path.read_text().splitlines()
        if ": done in" in line
    ]
    assert sorted(line.split()[1] for line in made) == [f"sub-{i}_T2w:" for i in range(6)]
    for name in NAMES:
        alone = tmp_path / Path(name).name
        poan_run([str(nearest_x2), str(dataset / name), "-o", str(alone)])
        result = out / name.replace("_T2w", "_res-2x_desc-sr_T2w")
        assert result.read_bytes() == alone.read_bytes()
    assert "6 scans super-resolved, 0 failed" in (out / "poan-report.html").read_text()
    if victim == "poan-bids":
        assert "Killed" in log.read_text()
        assert state(slurm, array) == "COMPLETED", "the task was put back and finished"


@pytest.mark.integration
def test_threads_follow_the_cores_of_the_task(slurm: dict[str, str], repository: Path) -> None:
    if (os.cpu_count() or 1) < 2:
        pytest.skip("needs two cores")
    code = "from poan_runtime.engines.cores import usable_cores; print(usable_cores())"
    command = ["srun", "--cpus-per-task=1", "--cpu-bind=cores", sys.executable, "-c", code]
    inside = {**slurm, "PYTHONPATH": str(repository)}
    told = subprocess.run(command, env=inside, capture_output=True, text=True, check=True)
    assert told.stdout == "1\n"
