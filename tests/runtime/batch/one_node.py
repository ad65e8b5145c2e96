"""A Slurm of one node on loopback, from Debian's packages munge and slurm-wlm."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")

CONFIGURATION = """\
ClusterName=poan
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
"""``cred_expire`` is how long a job that was put back must wait: 120 s by default, 5 at least."""


@contextlib.contextmanager
def one_node(folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which sbatch reaches it; skips where it cannot run."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    if missing := [name for name in PROGRAMS if shutil.which(name, path=path) is None]:
        pytest.skip(f"needs {missing[0]} (Debian: apt-get install munge slurm-wlm)")
    if os.getuid() != 0:
        pytest.skip("a Slurm of its own runs as root")
    environment = {**os.environ, "PATH": path, "SLURM_CONF": str(folder / "slurm.conf")}
    host = socket.gethostname().partition(".")[0]
    _configure(folder, host)
    daemons = [_munged(folder), ["slurmctld"], ["slurmd", "-N", host]]
    try:
        for command in daemons:
            subprocess.run(command, env=environment, check=True, capture_output=True)
        until(lambda: "idle" in _tell(environment, "sinfo", "-h", "-o", "%T"), 30)
        yield environment
    finally:
        for name in ("slurmd", "slurmctld", "munge"):
            _end(folder / f"{name}.pid")


def until(true: Callable[[], bool], seconds: float) -> None:
    """Wait until ``true()``; an AssertionError after ``seconds``."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.1)


def state(environment: dict[str, str], job: str) -> str:
    """A job's state, as ``COMPLETED``; of an array, of all its tasks."""
    lines = _tell(environment, "scontrol", "show", "job", job).split()
    states = {word.partition("=")[2] for word in lines if word.startswith("JobState=")}
    return " ".join(sorted(states))


def _tell(environment: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True).stdout


def _configure(folder: Path, host: str) -> None:
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(secrets.token_bytes(1024))
    (folder / "munge.key").chmod(0o600)
    text = CONFIGURATION.format(
        folder=folder,
        host=host,
        cores=os.cpu_count(),
        controller_port=_free_port(),
        node_port=_free_port(),
    )
    (folder / "slurm.conf").write_text(text)


def _munged(folder: Path) -> list[str]:
    kinds = {"key": "key-file", "socket": "socket", "pid": "pid-file", "seed": "seed-file"}
    places = [f"--{option}={folder}/munge.{kind}" for kind, option in kinds.items()]
    return ["munged", "--force", f"--log-file={folder}/munge.log", *places]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _end(pid_file: Path) -> None:
    """Ask a daemon to end, and wait until it has."""
    with contextlib.suppress(OSError, ValueError):
        number = int(pid_file.read_text())
        os.kill(number, signal.SIGTERM)
        until(lambda: not Path(f"/proc/{number}").exists(), 20)
