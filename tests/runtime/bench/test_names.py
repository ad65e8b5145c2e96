"""poan-bench prints a model's name in one line, whatever it holds."""

import shutil
from pathlib import Path

import pytest

from poan_runtime.commands import bench as cli


def test_a_name_cannot_break_the_heading_or_colour_it(
    nearest_x2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "a\nb\x1b[31m"
    shutil.copytree(nearest_x2, model)
    options = ["--iterations", "1", "--warmup", "0", "--no-cold", "--scan-iterations", "0"]
    models = [f"{model}@onnxruntime", f"{model}@fp32"]
    assert cli.main([*models, *options, "--device", "cpu", "--threads", "1"]) == 0
    said = capsys.readouterr().out
    shown = rf"{tmp_path}/a\nb\x1b[31m@"
    assert said.startswith(f"{shown}onnxruntime: ")
    assert f"\n{shown}fp32 takes " in said
    assert "\x1b" not in said
