"""poan-export as a command: what it writes, what it refuses, and its exit status."""

import errno
import json
import tempfile
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from torch import nn

from poan_export.cli import main
from poan_export.export import open_gate
from poan_export.gate.real_tiles import Scans
from poan_export.package import whole_folder
from poan_runtime.engines.backend import EngineOptions, open_backend
from poan_runtime.errors import PoanError
from poan_runtime.files import sha256_of
from poan_runtime.models.find import find_model
from poan_runtime.models.manifest import MatrixRoot, read_manifest
from tests.tiny.networks import TILE, facts_of

pytestmark = pytest.mark.slow  # one export is shared by most of them


def test_the_manifest_is_valid_and_tells_what_was_measured(exported: Path) -> None:
    document = json.loads((exported / "manifest.json").read_text())
    schema = json.loads((files("poan_runtime.models") / "manifest.schema.json").read_text())
    jsonschema.validate(document, schema)
    manifest = read_manifest(exported)
    assert (manifest.arch, manifest.scale, manifest.tile) == ("poan-lite", 2, TILE)
    assert manifest.parity.verdict == "pass"
    assert [f.name for f in manifest.files] == ["model.onnx", "model.fp16.onnx"]
    assert [f.precision for f in manifest.files] == ["fp32", "fp16"]
    for file in manifest.files:
        assert sha256_of(exported / file.name) == file.sha256
    assert "body.1.channel.pool" in manifest.files[1].islands
    root = manifest.square_root
    assert isinstance(root, MatrixRoot)
    assert root.scheme in ("newton-schulz", "quintic")
    assert root.condition_seen is not None
    # Sigma + (eps tr / C) I: no eigenvalue exceeds the trace, none is below eps tr / C
    assert 1e2 < root.condition_seen <= 8 / root.eps + 1
    metrics = {c.metric for c in manifest.parity.checks}
    assert {"relative_error", "relative_norm_error", "max_abs_error", "psnr_between_db",
            "psnr_change_db", "ssim_change", "largest_value", "unit_error"} <= metrics  # fmt: skip
    assert "PyTorch float32" in {c.file for c in manifest.parity.checks}


def test_errors_in_the_manifest_are_within_what_was_promised(exported: Path) -> None:
    checks = [c for c in read_manifest(exported).parity.checks if c.file == "model.onnx"]
    output = [c for c in checks if c.stage == "output" and c.metric == "relative_error"]
    roots = [c for c in checks if c.metric == "relative_norm_error"]
    assert len(output) == len(roots) == 7
    assert all(c.value is not None and c.value <= c.tolerance == 1e-4 for c in output)
    assert all(c.value is not None and c.value <= c.tolerance == 1e-3 for c in roots)


def test_the_runtime_reads_the_folder_and_reproduces_its_vectors(exported: Path) -> None:
    vectors = np.load(exported / "vectors.npz")
    cases = sorted(name.removeprefix("input_") for name in vectors if name.startswith("input_"))
    assert cases == ["constant", "one_bright_voxel", "real_0"]
    backend = open_backend(find_model(exported), EngineOptions(precision="fp32")).backend
    for case in cases:
        y = backend.run(vectors[f"input_{case}"])
        assert y.shape == (1, 1, 2 * TILE, 2 * TILE)
        reference = vectors[f"output_{case}"]
        assert np.abs(y - reference).max() <= 1e-4 * np.abs(reference).max()


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--iterations", "5"], 3, "the square root drifted"),
        (["--tile", "4"], 2, "tile 4 is too small: need more than 2 * halo + overlap = 4"),
        (["--opset", "20", "--bf16"], 2, "--opset 20: bf16 needs 22"),
        (["--find-islands"], 2, "--islands and --find-islands need --fp16 or --bf16"),
        (["--parity-data", "nowhere"], 2, "nowhere: no such file or folder"),
    ],
)
def test_what_is_refused_says_why_in_one_line_and_writes_nothing(
    checkpoint: Callable[[nn.Module], Path],
    network: nn.Module,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    status: int,
    message: str,
) -> None:
    path = checkpoint(network)
    tile = [] if "--tile" in options else ["--tile", str(TILE)]
    assert main(["--ckpt", str(path), *tile, "--engine", "none", *options]) == status
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("poan-export: ")
    assert message in last
    assert [p.name for p in path.parent.iterdir()] == ["tiny.pt"]


def test_a_folder_that_is_no_export_is_never_replaced(
    checkpoint: Callable[[nn.Module], Path],
    network: nn.Module,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = checkpoint(network)
    out = path.with_suffix("")
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    assert main(["--ckpt", str(path), "--tile", str(TILE), "--engine", "none"]) == 2
    assert "is no poan export" in capsys.readouterr().err
    assert (out / "thesis.txt").read_text() == "mine"


def test_an_earlier_export_is_replaced_whole(tmp_path: Path) -> None:
    out = tmp_path / "model"
    out.mkdir()
    for name in ("manifest.json", "stale.plan"):
        (out / name).write_text("old")
    with whole_folder(out) as folder:
        (folder / "manifest.json").write_text("new")
        assert (out / "manifest.json").read_text() == "old"
    assert {p.name: p.read_text() for p in out.iterdir()} == {"manifest.json": "new"}
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_failure_while_writing_leaves_the_earlier_export(tmp_path: Path) -> None:
    out = tmp_path / "model"
    out.mkdir()
    (out / "manifest.json").write_text("old")

    def fail_halfway() -> None:
        with whole_folder(out) as folder:
            (folder / "model.onnx").write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(PoanError, match="cannot be written: No space left"):
        fail_halfway()
    assert {p.name: p.read_text() for p in out.iterdir()} == {"manifest.json": "old"}
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_folder_that_takes_nothing_is_named_as_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*, dir: Path, prefix: str, suffix: str) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", f"{dir}/{prefix}ab{suffix}")

    monkeypatch.setattr(tempfile, "mkdtemp", refused)
    with pytest.raises(PoanError) as raised, whole_folder(tmp_path / "model"):
        pass
    assert str(raised.value) == f"{tmp_path / 'model'}: cannot be written: Permission denied"


def test_what_another_folder_refuses_keeps_its_own_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="elsewhere"), whole_folder(tmp_path / "model"):
        (tmp_path / "elsewhere/file").touch()


def test_an_export_that_replaces_another_says_so_and_prints_its_name_in_one_line(
    checkpoint: Callable[[nn.Module], Path],
    network: nn.Module,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "a\nb\x1b[31m"
    arguments = ["--ckpt", str(checkpoint(network)), "--out", str(out), "--tile", str(TILE)]
    arguments += ["--halo", "0", "--overlap", "2", "--engine", "none"]
    shown = rf"{tmp_path}/a\nb\x1b[31m"
    line = f"poan-export: replaces the export of a\\nb\\x1b[31m in {shown}"
    for again in (False, True):
        assert main(arguments) == 0
        told = capsys.readouterr()
        assert told.out == f"{shown}\n"
        assert "\x1b" not in told.err
        assert (line in told.err) is again
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, "tiny.pt"]


def test_quiet_says_nothing_of_an_export_that_is_well(
    checkpoint: Callable[[nn.Module], Path],
    network: nn.Module,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--ckpt", str(checkpoint(network)), "--tile", str(TILE), "--engine", "none"]
    assert main([*arguments, "--halo", "0", "--overlap", "2", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert (tmp_path / "tiny/manifest.json").is_file()


def test_a_checkpoint_that_is_none_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "not.pt"
    path.write_bytes(b"hello")
    assert main(["--ckpt", str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"poan-export: {path}: not a poan checkpoint")


def test_tiles_of_a_given_scan_are_used(network: nn.Module, shared_data: Path) -> None:
    scan = shared_data / "val" / "T1_openms_patient20_study2.nii.gz"
    gate = open_gate(network, facts_of(network), Scans(scan, TILE, 2, {"method": "bicubic"}))
    assert gate.cases.source == str(scan)
    first = gate.cases.items[0]
    assert first.hr is not None
    assert first.hr.shape == (1, 2 * TILE, 2 * TILE)
    assert first.lr.std() > 0.05


def test_a_second_tile_is_a_whole_export_within_behind_the_same_gates(
    checkpoint: Callable[[nn.Module], Path],
    network: nn.Module,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, small = checkpoint(network), TILE - 2
    arguments = ["--ckpt", str(path), "--engine", "none", "--allow-worse", "--halo", "1"]
    assert main([*arguments, "--overlap", "2", "--tile", f"{TILE},{small}"]) == 0
    out = path.with_suffix("")
    first, second = read_manifest(out), read_manifest(out / f"tile{small}")
    assert [(other.folder, other.tile) for other in first.other_tiles] == [("tile10", small)]
    assert (first.tile, second.tile, second.other_tiles) == (TILE, small, ())
    assert (first.name, first.network, first.scale) == (second.name, second.network, second.scale)
    assert second.parity.verdict == "pass"
    vectors = np.load(out / f"tile{small}" / "vectors.npz")
    assert vectors["input_real_0"].shape == (1, 1, small, small)
    said = capsys.readouterr().err
    assert said.count("model.onnx: parity pass") == 2
    assert f"tile {small}, in tile{small}:" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tile", "12,12"], "expected tiles that differ, got 12,12"),
        (["--tile", "12,none"], "argument --tile"),
        (["--tile", "12,4"], "tile 4 is too small: need more than 2 * halo + overlap = 4"),
        (["--tile", "12,10", "--vram", "4GiB"], "--vram fits one engine, and several tiles have"),
    ],
)
def test_tiles_that_make_no_export_are_refused_before_anything_is_written(
    options: list[str],
    said: str,
    checkpoint: Callable[[nn.Module], Path],
    network: nn.Module,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = checkpoint(network)
    try:
        status = main(["--ckpt", str(path), "--engine", "none", *options])
    except SystemExit as left:
        status = int(str(left.code))
    assert status == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert [p.name for p in path.parent.iterdir()] == ["tiny.pt"]


def test_each_stored_tile_has_its_z_and_its_attention_beside_it(exported: Path) -> None:
    with np.load(exported / "vectors.npz") as arrays:
        keys = set(arrays.files)
    cases = [key.removeprefix("input_") for key in keys if key.startswith("input_")]
    assert any(not case.startswith("real") for case in cases)
    for case in cases:
        stages = {key.split(".")[-1] for key in keys if key.startswith(f"stage_{case}:")}
        assert {"z", "attention"} <= stages
