"""--verify of a shipped model leaves the package as it is, and is heeded all the same."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from poan_runtime.commands.run import main
from poan_runtime.errors import PoanError
from poan_runtime.files import sha256_of
from poan_runtime.models import find, verdicts_here
from poan_runtime.models.find import find_model
from poan_runtime.models.manifest import Parity, read_manifest
from poan_runtime.models.verdicts_here import keep_verdicts, manifest_here


@pytest.fixture
def shipped(make_model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A model with vectors that nearest-neighbour answers, among the package's own files."""
    folder: Path = make_model()
    tiles = np.random.default_rng(0).random((2, 1, 16, 16), np.float32)
    fine = tiles.repeat(2, 2).repeat(2, 3)
    np.savez(folder / "vectors.npz", input_real=tiles, output_real=fine)
    document = json.loads((folder / "manifest.json").read_text())
    document["vectors"] = {"name": "vectors.npz", "sha256": sha256_of(folder / "vectors.npz")}
    (folder / "manifest.json").write_text(json.dumps(document))
    monkeypatch.setattr(find, "MODELS", folder.parent)
    monkeypatch.setattr(verdicts_here, "SHIPPED", folder.parent)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def test_a_verdict_on_a_shipped_model_goes_to_the_cache_folder_and_counts(
    shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in shipped.iterdir()}
    assert main(["--verify", shipped.name, "--backend", "onnxruntime"]) == 0
    assert "the verdict is kept in the cache folder" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in shipped.iterdir()} == before
    assert find_model(shipped.name).file.parity is not None
    (kept,) = (tmp_path / "cache/poan/verdicts").iterdir()
    assert kept.stem == sha256_of(shipped / "manifest.json")


def test_a_verdict_on_a_model_in_a_folder_that_may_only_be_read_is_kept_too(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdicts_here, "SHIPPED", tmp_path / "elsewhere")
    before, access = (shipped / "manifest.json").read_bytes(), os.access
    for may in (False, True):
        monkeypatch.setattr(
            os,
            "access",
            lambda path, mode, may=may: may if path == shipped else access(path, mode),
        )
        assert main(["--verify", str(shipped), "--backend", "onnxruntime"]) == 0
        assert ((shipped / "manifest.json").read_bytes() == before) is not may
        assert len([*(tmp_path / "cache/poan/verdicts").iterdir()]) == 1
        assert find_model(shipped).file.parity is not None


def test_a_failed_verdict_in_the_cache_refuses_the_model(shipped: Path) -> None:
    manifest = read_manifest(shipped)
    failed = dataclasses.replace(manifest.files[0], parity=Parity(verdict="fail", checks=()))
    keep_verdicts(shipped, manifest.with_file(failed))
    with pytest.raises(PoanError, match="parity verdict is fail"):
        find_model(shipped.name)


def test_the_cache_vouches_for_no_other_file(shipped: Path) -> None:
    manifest = read_manifest(shipped)
    passed = Parity(verdict="pass", checks=())
    other = dataclasses.replace(manifest.files[0], sha256="0" * 64, parity=passed)
    keep_verdicts(shipped, dataclasses.replace(manifest.with_file(other), tile=20))
    assert manifest_here(shipped).files == manifest.files
    assert manifest_here(shipped).tile == manifest.tile


def test_a_damaged_verdict_in_the_cache_is_as_none(shipped: Path) -> None:
    kept = keep_verdicts(shipped, read_manifest(shipped))
    kept.write_text("{")
    assert manifest_here(shipped) == read_manifest(shipped)
