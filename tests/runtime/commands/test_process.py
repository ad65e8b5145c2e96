"""`poan-run` as a process: what it imports, and what is left when it is killed."""

import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from poan_runtime.commands import run as cli

ROOT = Path(cli.__file__).resolve().parents[2]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "poan_runtime.commands.run", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from poan_runtime.commands import run as cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print('LOADED', *sorted(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    assert "Super-resolve MR scans" in result.stdout
    loaded = set(result.stdout.split("LOADED")[1].split())
    assert "poan_runtime.commands.run" in loaded
    heavy = {"torch", "onnx", "onnxruntime", "openvino", "matplotlib", "numpy", "nibabel", "PIL"}
    assert loaded & heavy == set()


def test_a_run_loads_neither_torch_nor_onnx(nearest_x2: Path, make_scan: Any) -> None:
    code = (
        "import sys; from poan_runtime.commands import run as cli\n"
        f"code = cli.main([{str(nearest_x2)!r}, {str(make_scan())!r}])\n"
        "print('LOADED', code, *sorted(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    code_and_modules = result.stdout.split("LOADED")[1].split()
    assert code_and_modules[0] == "0"
    assert {"torch", "onnx", "matplotlib"} & set(code_and_modules) == set()


def test_a_file_size_limit_is_one_line_and_leaves_nothing(
    nearest_x2: Path, make_scan: Any, tmp_path: Path
) -> None:
    data = np.random.default_rng(0).integers(0, 30000, (64, 64, 30)).astype(np.int16)
    scan = make_scan("scan.nii", data=data)
    result = subprocess.run(
        command(nearest_x2, scan),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)),
    )
    assert result.returncode == 2
    assert "cannot be written: File too large" in result.stderr
    assert result.stderr.count("\n") == 1
    assert [*tmp_path.iterdir()] == [scan]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_killed_process_leaves_no_output(
    number: signal.Signals, nearest_x2: Path, make_scan: Any, tmp_path: Path
) -> None:
    data = np.random.default_rng(0).integers(0, 30000, (160, 160, 200)).astype(np.int16)
    scan = make_scan("scan.nii.gz", data=data)
    out = tmp_path / "out"
    out.mkdir()
    process = subprocess.Popen(
        command(nearest_x2, scan, "-o", out / "sr.nii.gz", "--batch", "1"),
        env=environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not [*out.iterdir()] and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    left = [path.name for path in out.iterdir()]
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
        (name,) = left
        assert re.fullmatch(r"\.sr\.nii\.gz\.[0-9a-f]{8}\.poan-partial", name)
    else:
        assert process.returncode == (143 if number == signal.SIGTERM else 130)
        assert left == []
        assert error in (b"", b"poan-run: interrupted\n")


@pytest.mark.slow
def test_of_two_processes_that_write_one_output_one_wins_whole(
    nearest_x2: Path, make_model: Any, make_scan: Any, tmp_path: Path
) -> None:
    data = np.random.default_rng(0).integers(0, 30000, (120, 120, 60)).astype(np.int16)
    scan, models = make_scan("scan.nii", data=data), (nearest_x2, make_model(smooth=True))
    alone = []
    for model in models:
        subprocess.run(
            command(model, scan, "-o", tmp_path / "alone.nii", "--overwrite"),
            env=environment(),
            check=True,
            capture_output=True,
        )
        alone.append((tmp_path / "alone.nii").read_bytes())
    assert alone[0] != alone[1]
    out = tmp_path / "out"
    out.mkdir()
    both = [
        subprocess.Popen(
            command(model, scan, "-o", out / "sr.nii", "--overwrite"),
            env=environment(),
            stdout=subprocess.DEVNULL,
        )
        for model in models
    ]
    seen = set()
    while any(process.poll() is None for process in both):
        if (out / "sr.nii").exists():
            seen.add((out / "sr.nii").read_bytes())
        time.sleep(0.01)
    assert [process.returncode for process in both] == [0, 0]
    assert [path.name for path in out.iterdir()] == ["sr.nii"]
    assert {(out / "sr.nii").read_bytes(), *seen} <= set(alone)
