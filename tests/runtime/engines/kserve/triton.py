"""A real Triton, from NVIDIA's wheel nvidia-pytriton, in a virtual environment of its own.

The wheel holds the server with its Python backend alone, and wants another numpy than poan's
tests have. The environment is made once, in the user's cache folder.
"""

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

WHEELS = ("nvidia-pytriton==0.7.0", "numpy==1.26.4", "nibabel", "pillow", "onnxruntime==1.32.0")
READY_SECONDS = 180


@dataclass(frozen=True)
class Triton:
    """A server that runs: where it listens, and its process."""

    http: int
    grpc: int
    process: subprocess.Popen[bytes]


def environment() -> Path:
    """The virtual environment, made if it is not there; skips where that fails."""
    if sys.version_info[:2] != (3, 11) or sys.platform != "linux":
        pytest.skip("the stubs of Triton's Python backend are taken for Python 3.11 on Linux")
    folder = Path.home() / ".cache/poan/triton-0.7.0"
    if (folder / "ready").is_file():
        return folder
    commands = [
        [sys.executable, "-m", "venv", str(folder)],
        [str(folder / "bin/pip"), "install", "--quiet", *WHEELS],
    ]
    for command in commands:
        found = subprocess.run(command, capture_output=True, text=True)
        if found.returncode != 0:
            pytest.skip(f"no Triton: {(found.stderr.strip().splitlines() or ['?'])[-1]}")
    (folder / "ready").touch()
    return folder


@contextlib.contextmanager
def serving(repository: Path, work: Path, packages: Path) -> Iterator[Triton]:
    """Serve a model repository; ``packages`` is the folder that poan_runtime lies in."""
    made = environment()
    server = made / "lib/python3.11/site-packages/pytriton/tritonserver"
    backends = work / f"backends-{repository.name}"
    _backend(server, backends, packages)
    ports = [_free_port(), _free_port()]
    log = (work / f"triton-{ports[0]}.log").open("wb")
    command = [
        server / "bin/tritonserver",
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        *("--http-address=127.0.0.1", f"--http-port={ports[0]}"),
        *("--grpc-address=127.0.0.1", f"--grpc-port={ports[1]}"),
        *("--allow-metrics=false", "--exit-timeout-secs=2"),
    ]
    with log:
        process = subprocess.Popen(
            command, env=_variables(made), stdout=log, stderr=log, start_new_session=True
        )
        try:
            _wait(ports[0], process, Path(log.name))
            yield Triton(*ports, process)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # a server that was killed leaves its stub
            process.wait()


def _backend(server: Path, backends: Path, packages: Path) -> None:
    """The Python backend with its stub for 3.11; the folder is on the path of each model."""
    if backends.exists():
        return
    shutil.copytree(server / "backends/python", backends / "python")
    shutil.copytree(server / "python_backend_stubs/3.11", backends / "python", dirs_exist_ok=True)
    (backends / "python/poan_runtime").symlink_to(packages / "poan_runtime")


def _variables(made: Path) -> dict[str, str]:
    """The stub finds this Python's library, and the wheel's own, by LD_LIBRARY_PATH."""
    libraries = [
        sysconfig.get_config_var("LIBDIR"),
        str(made / "lib/python3.11/site-packages/nvidia_pytriton.libs"),
    ]
    path = f"{made / 'bin'}:{os.environ['PATH']}"
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(libraries), "PATH": path}


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/v2/health/ready")
            status = connection.getresponse().status
            connection.close()
            if status == 200:
                return
        time.sleep(0.1)
    raise AssertionError("Triton did not start:\n" + log.read_text()[-4000:])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
