"""Which model a name means, and what poan-run says of it."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from poan_runtime.commands.run import main
from poan_runtime.errors import PoanError
from poan_runtime.models.find import find_model
from poan_runtime.network import load_network


@pytest.fixture
def shipped(make_model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Path, Path]:
    """A shipped model, and a folder of the same name in the current one with another network."""
    folder: Path = make_model()
    monkeypatch.setattr("poan_runtime.models.find.MODELS", folder.parent)
    monkeypatch.chdir(tmp_path)
    here = tmp_path / folder.name
    make_model(smooth=True).rename(here)
    return folder, here


def test_a_bare_name_is_the_shipped_model_whatever_lies_here(
    shipped: tuple[Path, Path],
) -> None:
    folder, here = shipped
    found = find_model(folder.name)
    assert found.path == folder / "model.onnx"
    assert found.notices == (
        f"{folder.name} is the shipped model; for the folder of that name write ./{folder.name}",
    )
    for path in (f"./{folder.name}", f"{folder.name}/", Path(folder.name)):
        assert find_model(path).path.resolve() == here / "model.onnx"


def test_a_bare_name_that_is_no_shipped_model_is_never_a_folder(
    shipped: tuple[Path, Path], tmp_path: Path
) -> None:
    shipped[1].rename(tmp_path / "mine")
    with pytest.raises(PoanError, match=r"no shipped model \(.*for what lies here write \./mine"):
        find_model("mine")
    assert find_model("./mine").path.name == "model.onnx"


def test_a_run_says_which_file_runs_and_its_hash(
    nearest_x2: Path, make_scan: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(nearest_x2), str(make_scan()), "--backend", "onnxruntime"]) == 0
    file = nearest_x2 / "model.onnx"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    first = capsys.readouterr().out.splitlines()[0]
    assert first == f"tiny_x2: {file}, sha256 {digest}, in ONNX Runtime on the CPU, fp32"


@pytest.mark.parametrize(("flag", "lines"), [("--quiet", 0), (None, 4), ("--verbose", 5)])
def test_quiet_says_nothing_and_verbose_why_this_engine(
    flag: str | None,
    lines: int,
    nearest_x2: Path,
    make_scan: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [str(nearest_x2), str(make_scan()), *([flag] if flag else [])]
    assert main([*arguments, "--backend", "onnxruntime"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert len(said.out.splitlines()) == lines
    assert ("provider" in said.out) == (flag == "--verbose")


def test_a_file_in_eight_bits_runs_only_where_it_is_named(nearest_x2: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(nearest_x2, tmp_path / "both"))
    shutil.copy(folder / "model.onnx", folder / "model.int8.onnx")
    document = json.loads((folder / "manifest.json").read_text())
    eight = {**document["files"][0], "name": "model.int8.onnx", "precision": "int8"}
    document["files"].insert(0, eight)
    (folder / "manifest.json").write_text(json.dumps(document))
    with load_network(folder) as network:
        assert network.model.file.precision == "fp32"
    with load_network(folder / "model.int8.onnx") as network:
        assert network.model.file.precision == "int8"


def test_a_gain_that_is_negative_or_not_stated_is_told(
    make_model: Any, make_scan: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    worse = make_model(gains={"bicubic": 0.4, "truncated": -1.25})
    assert main([str(worse), str(make_scan())]) == 0
    assert "warning: tiny_x2: -1.25 dB against interpolation on truncated LR" in (
        capsys.readouterr().err
    )
    assert main([str(make_model()), str(make_scan("b.nii"))]) == 0
    said = capsys.readouterr()
    assert "tiny_x2: its gain over interpolation is not stated" in said.out
    assert said.err == ""
