"""poan-build: from the ONNX files of a finished export to plans in its manifest, with no torch."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poan_runtime.commands import build as cli
from poan_runtime.engines.nvidia import Gpu
from poan_runtime.engines.tensorrt.build import add, plan
from poan_runtime.engines.tensorrt.build.plan import BuiltPlan, Order
from poan_runtime.models.find import find_model
from poan_runtime.models.manifest import read_manifest
from tests.tiny.graphs import sha256

pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
Edit = Callable[[Callable[[dict[str, Any]], None]], None]
RTX = ("--engine", "tensorrt-rtx")


def build(folder: Path, *more: str) -> int:
    return cli.main([str(folder), *RTX, *more])


def test_a_plan_is_built_listed_and_waits_for_its_gpu(
    folder: Path, no_gpu: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "engine.plan").unlink()
    before = read_manifest(folder)
    assert build(folder, "--sm", "89") == 0
    model = find_model(folder / "engine.plan")
    assert model.file.sha256 == sha256(folder / "engine.plan")
    assert model.file.engine is not None
    assert model.file.engine.compute_capabilities == ("8.9",)
    profile, full = model.file.engine.profile, before.batch.opt
    assert (profile.min, profile.opt, profile.max) == (full, full, full)
    assert model.file.engine.source_onnx_sha256 == sha256(folder / "model.fp16.onnx")
    assert len(model.manifest.files) == len(before.files)  # it takes the old one's place
    assert "on the target: poan-run --verify" in capsys.readouterr().out


def test_each_group_of_gpus_has_a_plan_of_its_own_name(folder: Path, no_gpu: None) -> None:
    """The fp16 graph of this network has no fp32 product, so that SM75 can have one."""
    assert build(folder, "--sm", "75,86", "--batch", "3") == 0
    manifest = read_manifest(folder)
    plans = {file.name: file for file in manifest.files if file.kind == "plan"}
    assert sorted(plans) == ["engine.plan", "engine.sm75.plan"]
    assert [file.engine.profile.max for file in plans.values() if file.engine] == [3, 3]


def test_plans_of_tensorrt_for_two_models_of_gpu_stand_side_by_side(
    folder: Path, built: BuiltPlan, no_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The builder is stood in for: tensorrt itself builds on a GPU alone."""

    def copied(order: Order) -> BuiltPlan:
        shutil.copyfile(built.order.plan, order.plan)
        return dataclasses.replace(built, order=order)

    monkeypatch.setattr(add, "choose_flavour", lambda asked: ("tensorrt", "asked for"))
    monkeypatch.setattr(add, "build_plan", copied)
    before = [file.name for file in read_manifest(folder).files]
    for name in ("NVIDIA A100-SXM4-80GB", "NVIDIA T4", "NVIDIA T4"):
        monkeypatch.setattr(add, "gpu_here", lambda name=name: ("8.6", name))
        assert cli.main([str(folder), "--engine", "tensorrt"]) == 0
    names = [file.name for file in read_manifest(folder).files]
    assert names == [*before, "engine.nvidia-a100-sxm4-80gb.plan", "engine.nvidia-t4.plan"]


def test_an_onnx_file_that_is_not_the_manifests_is_not_built(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "model.fp16.onnx").write_bytes(b"another")
    before = (folder / "manifest.json").read_bytes()
    assert build(folder) == 2
    assert "expected sha256" in capsys.readouterr().err
    assert (folder / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(("name", "got"), [("nowhere", "nothing of that name"), ("", "a file")])
def test_what_is_no_folder_is_refused_in_words(
    name: str, got: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = folder / (name or "model.onnx")
    assert cli.main([str(named)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"poan-build: {named}: expected a folder that poan-export wrote")
    assert line.endswith(f"got {got}")


def test_a_plan_is_not_built_from_a_plan(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(folder, "--source", "engine.plan") == 2
    assert "expected an ONNX file to build from" in capsys.readouterr().err


def test_what_was_known_of_a_plan_is_forgotten_when_it_is_built_anew(
    folder: Path, edit_manifest: Edit, no_gpu: None
) -> None:
    verdict = {
        "engine": "tensorrt-rtx",
        "device": "a card",
        "version": "1.7.1.116",
        "parity": {"verdict": "pass", "checks": []},
    }
    names = ("engine.plan", "model.onnx")
    entries = [{**verdict, "file": name} for name in names]
    edit_manifest(lambda m: m.update(device_verdicts=entries))
    assert build(folder, "--sm", "86") == 0
    assert [v.file for v in read_manifest(folder).device_verdicts] == ["model.onnx"]


def test_tensorrt_without_a_gpu_is_one_line(
    folder: Path, no_gpu: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([str(folder), "--engine", "tensorrt"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_building_loads_neither_torch_nor_onnx(folder: Path, no_gpu: None) -> None:
    code = (
        "import sys; from poan_runtime.commands import build\n"
        f"assert build.main([{str(folder)!r}, *{RTX!r}, '--sm', '86']) == 0\n"
        "print('LOADED', *sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split("LOADED")[1].split()
    assert not {"torch", "onnx", "nibabel", "poan_export"} & set(loaded)


def test_plans_are_built_for_every_tile_of_an_export(
    folder: Path, built: BuiltPlan, edit_manifest: Edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[Order] = []

    def copied(order: Order) -> BuiltPlan:
        orders.append(order)
        shutil.copyfile(built.order.plan, order.plan)
        return dataclasses.replace(built, order=order)

    monkeypatch.setattr(add, "build_plan", copied)
    (folder / "engine.plan").unlink()
    shutil.copytree(folder, folder / "tile20")
    edit_manifest(lambda m: m.update(other_tiles=[{"folder": "tile20", "tile": 20}]))
    judged: list[Path] = []
    monkeypatch.setattr(add, "gate_plans", lambda where, names, say: judged.append(where) or names)
    assert build(folder) == 3
    both = [folder, folder / "tile20"]
    assert [order.onnx.parent for order in orders] == judged == both
    assert all((where / "engine.plan").is_file() for where in both)


def test_a_plan_of_tensorrt_states_the_gpu_that_it_was_built_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tensorrt builds on a GPU alone: the card and the builder are stand-ins."""
    ties = {"name": "a card", "sms": 84, "memory_bytes": 1 << 33, "driver": "13", "runtime": "13.4"}
    card = Gpu(index=0, compute_capability="9.0", **ties)  # type: ignore[arg-type]

    def builds(command: list[str], made: Path, *_: Path) -> tuple[str, float]:
        order = json.loads(Path(command[-1]).read_text())
        assert order["timing_cache"].endswith("timings-a-card-9.0.cache")
        made.write_bytes(b"a plan")
        Path(order["facts"]).write_text(json.dumps({"version": "11.0", "builder_flags": []}))
        return "", 1.0

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(plan, "find_gpu_here", lambda: (card, card.name))
    monkeypatch.setattr(plan, "run_builder", builds)
    source = read_manifest(folder).files[1]
    order = plan.order_from(folder, source, "engine.a-card.plan", "tensorrt", (), 8)
    engine = plan.build_plan(order).manifest_entry().engine
    assert engine is not None
    assert engine.gpu == ties
    assert engine.compute_capabilities == ("9.0",)


def test_a_folders_name_cannot_break_a_line_or_colour_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def add_plans(request: Any, say: Callable[[str], None]) -> list[str]:
        say(f"engine.plan: parity pending; poan-run --verify {request.folder}/engine.plan")
        return []

    monkeypatch.setattr(add, "add_plans", add_plans)
    assert cli.main(["a\nb\x1b[31m"]) == 0
    assert capsys.readouterr().out.endswith("--verify a\\nb\\x1b[31m/engine.plan\n")
