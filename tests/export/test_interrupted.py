"""Ctrl-C and SIGTERM end every command without a traceback and leave nothing half made."""

import contextlib
import errno
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from poan_export import cli, export
from poan_export.package import whole_folder
from poan_runtime.bench import measure
from poan_runtime.commands import bench
from poan_runtime.errors import PoanError
from poan_runtime.files import sha256_of
from poan_runtime.models.manifest import read_manifest
from poan_train import evaluate

SIZE = ["--tile", "8", "--halo", "0", "--overlap", "2", "--engine", "none"]


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_export_leaves_no_folder(
    checkpoint: Callable[[nn.Module], Path],
    network: nn.Module,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def half_made(exported: Any, gate: Any, request: Any, plans: Any, scans: Any) -> None:
        (plans.folder / "model.onnx").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "write_graphs", half_made)
    arguments = ["--ckpt", str(checkpoint(network)), "--out", str(tmp_path / "out"), *SIZE]
    assert cli.main(arguments) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "poan-export: interrupted"
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.pt"]


@pytest.mark.parametrize("lasting", [False, True])
def test_an_export_that_cannot_take_its_name_gives_it_back_to_the_earlier_one(
    lasting: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "net"
    out.mkdir()
    (out / "manifest.json").write_text("earlier")
    rename = Path.rename

    def refused(path: Path, target: Path) -> Path:
        if path.name == "new" or (lasting and target == out):
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    failing = pytest.raises(PoanError, match="net: cannot be written: Input/output")
    with monkeypatch.context() as patched, failing, whole_folder(out) as new:
        patched.setattr(Path, "rename", refused)
        (new / "manifest.json").write_text("later")
    assert out.exists() is not lasting
    with contextlib.suppress(KeyError), whole_folder(out):  # the next start
        raise KeyError
    assert (out / "manifest.json").read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def test_an_export_whose_name_another_takes_just_before_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, rename, taken = tmp_path / "net", Path.rename, []

    def late(path: Path, target: Path) -> Path:
        if path.name == "new" and not taken:
            taken.append(out)
            out.mkdir()
            (out / "manifest.json").write_text("another")
        return rename(path, target)

    with whole_folder(out) as new:
        (new / "manifest.json").write_text("own")
        monkeypatch.setattr(Path, "rename", late)
    assert (out / "manifest.json").read_text() == "own"
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def test_an_interrupted_evaluation_and_bench_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluate, "load_network", interrupted)
    assert evaluate.main(["--ckpt", "a.pt", "--data", "."]) == 130
    assert capsys.readouterr().err == "poan-eval: interrupted\n"
    monkeypatch.setattr(measure, "bench", interrupted)
    assert bench.main(["t2_x2"]) == 130
    assert capsys.readouterr().err == "poan-bench: interrupted\n"


TERMINATED = """
import os, signal, sys
from poan_export import cli, export

def write_graphs(exported, gate, request, plans, scans):
    (plans.folder / "model.onnx").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGTERM)

export.write_graphs = write_graphs
sys.exit(cli.main(sys.argv[1:]))
"""


def test_sigterm_ends_an_export_with_its_number_and_no_folder(
    checkpoint: Callable[[nn.Module], Path], network: nn.Module, tmp_path: Path
) -> None:
    arguments = ["--ckpt", str(checkpoint(network)), "--out", str(tmp_path / "out"), *SIZE]
    done = subprocess.run(
        [sys.executable, "-c", TERMINATED, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.pt"]


TOLD_OF = """
import sys
from {module} import {name} as room
from {command} import main

whole = room.{called}

def told(*arguments, **keywords):
    print("begun", flush=True)
    return whole(*arguments, **keywords)

room.{called} = told
sys.exit(main(sys.argv[1:]))
"""
"""A command that says when it begins what takes long."""


def terminated(code: str, arguments: list[str]) -> tuple[int, str]:
    """Status and stderr of a process that gets SIGTERM once it has begun."""
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGTERM)
        return process.wait(timeout=120), process.communicate()[1]


def test_sigterm_ends_an_evaluation_with_its_number_and_without_a_traceback(
    checkpoint: Callable[[nn.Module], Path], network: nn.Module, make_scan: Any, tmp_path: Path
) -> None:
    path = checkpoint(network)
    (tmp_path / "data").mkdir()
    volume = np.random.default_rng(0).integers(1, 999, (96, 96, 64)).astype(np.int16)
    make_scan("a_T2w.nii", data=volume).rename(tmp_path / "data/a_T2w.nii")
    code = TOLD_OF.format(
        module="poan_train", name="evaluate", command="poan_train.evaluate", called="run_whole"
    )
    code = code.replace("told\nsys", "room.run_kinds = told\nsys")
    arguments = ["--ckpt", str(path), "--data", str(tmp_path / "data"), "--self-ensemble"]
    status, said = terminated(code, [*arguments, "--json", str(tmp_path / "eval.json")])
    assert status == 128 + signal.SIGTERM, said
    # the line of the volume is there or not, as the signal comes behind it or before
    assert said.removeprefix("volume 1 of 1: a_T2w.nii\n") == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "tiny.pt"]


def test_sigterm_ends_a_bench_with_its_number_and_without_a_traceback(
    nearest_x2: Path, tmp_path: Path
) -> None:
    code = TOLD_OF.format(
        module="poan_runtime.bench",
        name="measure",
        command="poan_runtime.commands.bench",
        called="bench",
    )
    arguments = [f"{nearest_x2}@onnxruntime", "--duration", "300", "--no-cold", "--device", "cpu"]
    status, said = terminated(code, [*arguments, "--json", str(tmp_path / "bench.json")])
    assert status == 128 + signal.SIGTERM, said
    assert said == ""
    assert not (tmp_path / "bench.json").exists()


@pytest.mark.slow
def test_two_processes_that_export_into_one_folder_leave_one_export_whole(
    checkpoint: Callable[[nn.Module], Path], network: nn.Module, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["--ckpt", str(checkpoint(network)), "--out", str(out), *SIZE]
    command = [sys.executable, "-m", "poan_export", *arguments]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=600)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    manifest = read_manifest(out)
    listed = {file.name: file.sha256 for file in manifest.files}
    assert manifest.vectors is not None
    listed[manifest.vectors.name] = manifest.vectors.sha256
    assert {path.name for path in out.iterdir()} == {*listed, "manifest.json"}
    assert {name: sha256_of(out / name) for name in listed} == listed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tiny.pt"]


def test_two_exports_into_one_folder_at_once_leave_one_of_them_whole(tmp_path: Path) -> None:
    from poan_export.package import whole_folder

    out = tmp_path / "t2_x2"
    with whole_folder(out) as first, whole_folder(out) as second:
        for folder, name in ((first, "first"), (second, "second")):
            (folder / "manifest.json").write_text(name)
            (folder / name).touch()
    assert [path.name for path in tmp_path.iterdir()] == ["t2_x2"]
    assert {path.name for path in out.iterdir()} == {"manifest.json", "first"}


def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path: Path) -> None:
    from poan_export.package import whole_folder

    left = tmp_path / ".t2_x2.abcd.poan-export"
    (left / "new").mkdir(parents=True)
    with whole_folder(tmp_path / "t2_x2") as folder:
        (folder / "manifest.json").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["t2_x2"]
