"""poan-doctor: it names what runs and the command for what is missing."""

import importlib.util
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from poan_runtime.commands.doctor import main
from poan_runtime.engines import precision
from poan_runtime.models import find
from poan_runtime.report import doctor


@pytest.fixture
def only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nearest_x2: Path) -> Path:
    """The tiny model is the only one that is shipped."""
    shutil.copytree(nearest_x2, tmp_path / "shipped/tiny_x2")
    monkeypatch.setattr(find, "MODELS", tmp_path / "shipped")
    return tmp_path / "shipped/tiny_x2"


def hidden(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Behave as though modules were not installed."""
    whole = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> Any:
        return None if name in modules else whole(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    main(["--json", *arguments])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.usefixtures("only")
def test_a_model_that_runs_is_timed_and_its_engine_explained(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = report(capsys, "--backend", "onnxruntime")
    (run,) = found["runs"]
    assert found["well"]
    assert run["engine"].startswith("onnxruntime ")
    assert run["device"] == "cpu"
    # a tile of 16 serves 14 of its voxels along a side: 9 for 120, 81 a slice, 96 slices
    assert run["scan_s"] == pytest.approx(run["tile_ms"] / 1000 * 81 * 96)
    assert report(capsys, "--no-timing")["runs"][0]["scan_s"] is None


@pytest.mark.usefixtures("only")
def test_its_lines_name_the_engine_in_plain_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--no-timing", "--backend", "onnxruntime"]) == 0
    (line,) = [one for one in capsys.readouterr().out.splitlines() if one.startswith("runs ")]
    assert re.fullmatch(r"runs    tiny_x2: ONNX Runtime [\d.]+ on the CPU, fp32", line)


def test_a_name_cannot_break_its_lines_or_colour_them(
    only: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = only.rename(only.with_name("a\nruns\x1b[31m"))
    assert main(["--no-timing", "--backend", "onnxruntime", str(named)]) == 0
    said = capsys.readouterr().out
    assert r"runs    a\nruns\x1b[31m: ONNX Runtime" in said
    assert "\x1b" not in said


@pytest.mark.usefixtures("only")
def test_what_is_missing_comes_with_the_command_that_mends_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hidden(monkeypatch, "pynetdicom", "openvino")
    assert main(["--no-timing", "--backend", "onnxruntime"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (node,) = [line for line in lines if "pynetdicom" in line]
    assert node.startswith("missing")
    assert "[node]'" in node
    assert any(line.startswith("missing openvino") and "[openvino]'" in line for line in lines)
    assert any(line.startswith("ok      onnxruntime") for line in lines)


@pytest.mark.usefixtures("only")
def test_without_any_engine_it_says_so_and_exits_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hidden(monkeypatch, "onnxruntime", "openvino")
    assert main(["--no-timing"]) == 1
    assert "FAILS   tiny_x2: no inference engine is installed; run: pip" in capsys.readouterr().out


def test_a_damaged_model_is_named(only: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (only / "model.onnx").write_bytes(b"other")
    found = report(capsys, "--no-timing")
    assert not found["well"]
    assert "expected sha256" in found["runs"][0]["error"]


@pytest.mark.usefixtures("only", "no_gpu")
def test_gpu_engines_are_not_missed_on_a_machine_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hidden(monkeypatch, "tensorrt")
    monkeypatch.setattr(doctor, "_providers", lambda: ["CPUExecutionProvider"])
    parts = {part.name: part for part in doctor.engines()}
    assert parts["tensorrt"].mend == "needs an NVIDIA GPU and its driver"
    assert parts["onnxruntime"].serves == "onnx files on cpu"
    assert parts["onnxruntime-tensorrt"].mend == "needs an NVIDIA GPU and its driver"


def test_every_engine_and_precision_is_timed_beside_what_auto_takes(
    only: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    document = json.loads((only / "manifest.json").read_text())
    eight = {**document["files"][0], "name": "model.int8.onnx", "precision": "int8"}
    document["files"].append(eight)
    (only / "manifest.json").write_text(json.dumps(document))
    shutil.copy(only / "model.onnx", only / "model.int8.onnx")
    (run,) = report(capsys, "--compare", "--backend", "onnxruntime")["runs"]
    found = {(one["engine"], one["precision"], one["file"]) for one in run["beside"]}
    assert ("onnxruntime", "fp32", "model.onnx") in found
    assert ("onnxruntime", "int8 and fp32", "model.int8.onnx") in found
    times = [one["tile_ms"] for one in run["beside"]]
    assert times == sorted(times)
    assert report(capsys, "--no-timing")["runs"][0]["beside"] == []


def test_a_model_of_ones_own_is_looked_at_by_its_folder(
    nearest_x2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run,) = report(capsys, "--no-timing", "--backend", "onnxruntime", str(nearest_x2))["runs"]
    assert run["error"] is None
    assert main(["--no-timing", "nowhere/x2"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_capped_cpu_has_no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setenv(precision.CAP, "AVX2")
    assert not precision.cpu_has_bf16()
    monkeypatch.setattr(os, "environ", {})
    assert main(["--no-timing", "--isa", "avx2", "--backend", "onnxruntime"]) == 0
    assert os.environ[precision.CAP] == "AVX2"
