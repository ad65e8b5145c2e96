"""poan-export with engines, from checkpoint to poan-run, on a machine with no GPU."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from poan_export import cli
from poan_export.plans import make as plans
from poan_export.plans.make import EngineRequest, check_request
from poan_export.precision.quantise import Loss, QuantisationRefusedError
from poan_runtime.commands import run as run_cli
from poan_runtime.engines.tensorrt.build import add
from poan_runtime.engines.tensorrt.build.plan import full_batches
from poan_runtime.errors import PoanError
from poan_runtime.files import sha256_of
from poan_runtime.models.manifest import read_manifest
from poan_train import networks
from poan_train.checkpoint import Facts, save_checkpoint

pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
SMALL = {"channels": 8, "blocks": 2, "poab_after": 1, "embedding": 4, "pyramid": (0.8,)}
SIZE = ["--tile", "12", "--halo", "1", "--overlap", "2", "--allow-worse"]
"""Least sizes; the network is as good as untrained, which is not what these tests are about."""


@pytest.fixture(scope="module")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A tiny POAN x2 with fresh weights that claim so many steps of training."""

    def make(steps: int) -> Path:
        config = networks.make_config("poan-lite", 2, **SMALL)
        torch.manual_seed(0)
        network = networks.build("poan-lite", config)
        facts = Facts(
            arch="poan-lite",
            network=networks.config_to_json(config),
            contrast="T2",
            degradation={"method": "bicubic", "scale": 2},
            intensity={"rule": "percentile-nonzero", "percentile": 99.9},
            training={"data": [], "licence": "", "steps": steps},
        )
        path = tmp_path_factory.mktemp("checkpoint") / "t2_x2.pt"
        save_checkpoint(path, facts, network.state_dict())
        return path

    return make


@pytest.fixture(scope="module")
def exported(make_checkpoint: Callable[[int], Path]) -> Path:
    """ONNX, fp16 ONNX, 8-bit ONNX and their plans."""
    checkpoint = make_checkpoint(1)
    options = ["--fp16", "--int8", "--engine", "tensorrt-rtx", "--sm", "86", *SIZE]
    assert cli.main(["--ckpt", str(checkpoint), *options]) == 0
    return checkpoint.with_suffix("")


@pytest.mark.slow
def test_an_export_holds_plans_from_the_half_and_the_8_bit_graph(
    exported: Path, no_gpu: None
) -> None:
    manifest = read_manifest(exported)
    assert [file.name for file in manifest.files] == [
        "model.onnx",
        "model.fp16.onnx",
        "engine.plan",
        "model.int8.onnx",
        "engine.int8.plan",
    ]
    for name, source in (("engine.plan", "model.fp16.onnx"), ("engine.int8.plan", None)):
        file, onnx_name = manifest.file(name), source or "model.int8.onnx"
        assert file is not None
        assert file.engine is not None
        assert file.parity is not None
        assert file.sha256 == sha256_of(exported / name)
        assert file.engine.source_onnx_sha256 == sha256_of(exported / onnx_name)
        assert file.engine.compute_capabilities == ("8.6",)
        assert file.engine.profile == full_batches(manifest.batch.opt)
        assert file.parity.verdict == "pending"
    fp16 = manifest.file("engine.plan")
    assert fp16 is not None
    assert any(island.endswith("pool") for island in fp16.islands)
    int8 = manifest.file("model.int8.onnx")
    assert int8 is not None
    assert int8.parity is not None
    (check,) = int8.parity.checks
    assert (check.metric, check.tolerance) == ("psnr_loss_db", 0.05)
    assert check.value is not None
    assert check.value < 0.05


def test_the_plan_just_exported_runs_as_its_onnx_file_without_a_gpu(
    exported: Path, scan: Path, no_gpu: None, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = str(exported / "engine.plan")
    assert run_cli.main([plan, str(scan), "--threads", "1"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert sum("no GPU" in line and "running model.onnx in its place" in line for line in said) == 1
    assert run_cli.main([plan, str(scan), "--device", "cuda"]) == 2


def test_the_stored_vectors_pass_on_the_exported_onnx_file(exported: Path) -> None:
    verify = ["--verify", str(exported / "model.onnx"), "--precision", "fp32", "--threads", "1"]
    assert run_cli.main(verify) == 0
    document = json.loads((exported / "manifest.json").read_text())
    (entry,) = [file for file in document["files"] if file["name"] == "model.onnx"]
    assert entry["parity"]["verdict"] == "pass"
    reasons = {check["reason"] for check in document["parity"]["checks"]}
    assert {check["reason"] for check in entry["parity"]["checks"]} <= reasons  # the gate's own


def test_vectors_hold_z_and_the_attention_for_engines_to_be_judged_by(exported: Path) -> None:
    with np.load(exported / "vectors.npz") as arrays:
        real = sorted(key for key in arrays.files if key.startswith("stage_real_0:"))
        assert [key.split(".")[-1] for key in real] == ["attention", "z"]
        assert all(np.isfinite(arrays[key]).all() and arrays[key].any() for key in real)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(list(arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_what_cannot_be_built_is_refused_before_the_export(
    make_checkpoint: Callable[[int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = make_checkpoint(0)
    start = ["--ckpt", str(checkpoint)]
    assert "--sm: expected some of" in refused(capsys, *start, "--sm", "90")
    assert "SM75 has no bf16" in refused(capsys, *start, "--bf16", "--sm", "75")
    assert "--int8 needs trained weights" in refused(capsys, *start, "--int8")
    assert "--vram: expected a size" in refused(capsys, *start, "--vram", "much")
    nothing = refused(capsys, *start, "--vram", "4GiB", "--engine", "none")
    assert "--vram measures plans, and none can be built" in nothing
    assert not checkpoint.with_suffix("").exists()


def test_8_bit_beside_bf16_and_sm_beside_tensorrt_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(PoanError, match="--fp8: expected --fp16 or full precision"):
        check_request(EngineRequest(eight_bit=("fp8",)), "bf16", trained=True)
    monkeypatch.setattr(plans, "choose_flavour", lambda asked: ("tensorrt", "asked for"))
    with pytest.raises(PoanError, match="--sm is for --engine tensorrt-rtx"):
        check_request(EngineRequest(engine="tensorrt", sm="86"), "fp16", trained=True)


@pytest.mark.slow
def test_a_refused_8_bit_graph_leaves_the_rest_and_gives_status_3(
    make_checkpoint: Callable[[int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def loses(*arguments: Any) -> tuple[dict[str, Any], Loss]:
        raise QuantisationRefusedError("--int8: refused: it loses 0.210 dB")

    monkeypatch.setattr(plans, "quantise_or_refuse", loses)
    start = ["--ckpt", str(make_checkpoint(1)), "--out", str(tmp_path / "out"), *SIZE]
    assert cli.main([*start, "--int8", "--engine", "none", "--quiet"]) == 3
    assert "it loses 0.210 dB" in capsys.readouterr().err
    assert [file.name for file in read_manifest(tmp_path / "out").files] == ["model.onnx"]


@pytest.mark.slow
def test_a_builder_that_dies_leaves_no_export_and_its_log_beside(
    make_checkpoint: Callable[[int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from poan_runtime.engines.tensorrt.build import plan as engines

    real = engines.run_builder

    def dies(command: list[str], *paths: Path) -> tuple[str, float]:
        kill = "import os; print('choosing', flush=True); os.kill(os.getpid(), 11)"
        return real([command[0], "-c", kill], *paths)

    monkeypatch.setattr(engines, "run_builder", dies)
    out = tmp_path / "out"
    start = ["--ckpt", str(make_checkpoint(1)), "--out", str(out), *SIZE]
    assert cli.main([*start, "--engine", "tensorrt-rtx"]) == 2
    assert "the builder died of SIGSEGV" in capsys.readouterr().err
    assert not out.exists()
    assert (tmp_path / "out.engine.plan.log").read_text() == "choosing\n"


def test_an_export_is_good_only_where_the_gate_that_poan_build_has_too_fails_no_plan(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def gate(where: Path, names: list[str], say: object) -> list[str]:
        asked.append(names)
        return names if len(asked) == 2 else []

    assert plans.gate_plans is add.gate_plans
    assert plans.build_plan is add.build_plan
    monkeypatch.setattr(plans, "gate_plans", gate)
    assert plans.finish(folder, EngineRequest(), print)
    assert not plans.finish(folder, EngineRequest(), print)
    assert asked == [["engine.plan"]] * 2
