"""Ctrl-C and SIGTERM end every command without a traceback and leave nothing half made."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from poan_export import cli, export
from poan_runtime.bench import measure
from poan_runtime.commands import bench
from poan_train import evaluate


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_export_leaves_no_folder(
    tiny_export: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(export, "write_vectors", interrupted)
    arguments = ["--ckpt", str(tiny_export[0]), "--out", str(tmp_path / "out"), "--tile", "8"]
    arguments += ["--halo", "0", "--overlap", "2", "--engine", "none"]
    assert cli.main(arguments) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "poan-export: interrupted"
    assert [*tmp_path.iterdir()] == []


def test_an_interrupted_evaluation_and_bench_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluate, "load_network", interrupted)
    assert evaluate.main(["--ckpt", "a.pt", "--data", "."]) == 130
    assert capsys.readouterr().err == "poan-eval: interrupted\n"
    monkeypatch.setattr(measure, "bench", interrupted)
    assert bench.main(["t2_x2"]) == 130
    assert capsys.readouterr().err == "poan-bench: interrupted\n"


def test_sigterm_ends_an_export_with_its_number_and_no_folder(
    tiny_export: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def terminated(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(export, "write_vectors", terminated)
    arguments = ["--ckpt", str(tiny_export[0]), "--out", str(tmp_path / "out"), "--tile", "8"]
    arguments += ["--halo", "0", "--overlap", "2", "--engine", "none"]
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 128 + signal.SIGTERM
    assert [*tmp_path.iterdir()] == []


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
