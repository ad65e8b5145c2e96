"""poan-run with a plan: what runs where there is no GPU, and what is refused anywhere."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from poan_runtime import extras
from poan_runtime.commands import run as cli
from poan_runtime.engines import which_file as choice
from poan_runtime.engines.backend import Backend, EngineOptions, OpenedBackend, Tiles
from poan_runtime.engines.tensorrt.build.plan import TIES, BuiltPlan, full_batches
from poan_runtime.engines.tensorrt.check import (
    check_gpu,
    check_header,
    check_version,
    read_plan,
)
from poan_runtime.engines.tensorrt.library import load_library
from poan_runtime.engines.which_file import find_runnable
from poan_runtime.errors import PoanError
from poan_runtime.geometry import Geometry
from poan_runtime.models.find import Trust, find_model
from poan_runtime.network import Network, Settings
from tests.tiny.graphs import sha256

pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
Edit = Callable[[Callable[[dict[str, Any]], None]], None]
PLAN = 2
"""Index of the plan among the manifest's files."""


def card(**changes: Any) -> Any:
    """A GPU that the plan of conftest.py fits."""
    cuda = pytest.importorskip("poan_runtime.engines.tensorrt.cuda", reason="needs cuda-python")
    facts = {
        "index": 0,
        "name": "a card",
        "compute_capability": "8.6",
        "memory_bytes": 1 << 33,
        "sms": 84,
        "driver": "13.0",
        "runtime": "13.4",
    }
    return cuda.Gpu(**(facts | changes))


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def refused(capsys: pytest.CaptureFixture[str], plan: Path, scan: Path, *more: str) -> str:
    """The one line with which poan-run refuses a plan, with status 2 and no output."""
    assert cli.main([str(plan), str(scan), "--threads", "1", *more]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("poan-run: ")
    assert not scan.with_name("scan_desc-sr.nii.gz").exists()
    return captured.err


def test_without_a_gpu_the_onnx_file_runs_and_one_line_says_so(
    folder: Path, scan: Path, no_gpu: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    arguments = [str(folder / "engine.plan"), str(scan), "--threads", "1", "--report", str(report)]
    assert cli.main(arguments) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "engine.plan: no GPU" in line
    assert "running model.onnx in its place" in line
    document = json.loads(report.read_text())
    assert document["model"]["file"].endswith("model.onnx")
    assert any("no GPU" in warning for warning in document["scans"][0]["warnings"])
    fine = scan.with_name("scan_desc-sr.nii.gz")
    assert nib.load(fine).shape == (40, 36, 3)
    by_plan = fine.read_bytes()
    fine.unlink()
    assert cli.main([str(folder / "model.onnx"), str(scan), "--threads", "1"]) == 0
    assert fine.read_bytes() == by_plan


def test_device_cuda_without_a_gpu_is_one_line_and_status_2(
    folder: Path, scan: Path, no_gpu: None, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, folder / "engine.plan", scan, "--device", "cuda")
    assert "no GPU" in line


def test_a_named_tensorrt_backend_is_not_replaced(
    folder: Path, scan: Path, no_gpu: None, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, folder / "engine.plan", scan, "--backend", "tensorrt-rtx")
    assert "no GPU" in line


def test_device_cpu_runs_the_onnx_file(folder: Path) -> None:
    model = find_runnable(folder / "engine.plan", EngineOptions(device="cpu"))
    assert model.path.name == "model.onnx"
    assert "the device asked for is the CPU" in model.notices[0]


def test_a_missing_library_runs_the_onnx_file_and_names_the_pip_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = choice.importlib.util.find_spec
    monkeypatch.setattr(
        choice.importlib.util,
        "find_spec",
        lambda name: None if name == "tensorrt_rtx" else real(name),
    )
    model = find_runnable(folder / "engine.plan", EngineOptions())
    assert model.path.name == "model.onnx"
    assert extras.missing("tensorrt_rtx", "tensorrt-rtx-cu13") in model.notices[0]


@pytest.mark.parametrize("place", [0, 40, -1])
def test_one_flipped_byte_is_refused(
    place: int, folder: Path, scan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = folder / "engine.plan"
    data = bytearray(plan.read_bytes())
    data[place] ^= 1
    plan.write_bytes(data)
    assert "expected sha256" in refused(capsys, plan, scan)


def test_a_plan_of_another_version_is_refused_with_both_versions(
    folder: Path, scan: Path, edit_manifest: Edit, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_manifest(lambda m: m["files"][PLAN]["engine"].update(version="1.6.0.1"))
    line = refused(capsys, folder / "engine.plan", scan)
    assert f"built for tensorrt-rtx 1.6.0.1, this is {load_library('tensorrt-rtx').version}" in line
    assert "pip install 'tensorrt-rtx-cu13==1.6.0.1'" in line


def test_a_plan_for_another_architecture_is_refused_with_the_remedy(
    folder: Path, scan: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = pytest.importorskip("poan_runtime.engines.tensorrt.cuda", reason="needs cuda-python")
    monkeypatch.setattr(cuda, "find_gpu", lambda index=None: card(compute_capability="12.0"))
    line = refused(capsys, folder / "engine.plan", scan)
    assert "built for compute capability 8.6, 8.9, this GPU (a card) has 12.0" in line
    assert "export it again --sm 120" in line


def test_a_plan_that_fits_the_gpu_passes_the_check(folder: Path) -> None:
    model = find_model(folder / "engine.plan")
    assert check_gpu(model, card(compute_capability="8.9")) == ()
    with pytest.raises(PoanError, match="compute capability"):
        check_gpu(model, card(compute_capability="9.0"))


@pytest.mark.parametrize(
    ("here", "refusal"),
    [
        ({"name": "another card"}, "built on a card (name), this GPU has another card; poan-build"),
        ({"sms": 40}, "built on 84 (sms), this GPU has 40; poan-build"),
        ({"memory_bytes": 1 << 32}, "built with 8192 MiB of memory, this GPU has 4096 MiB"),
    ],
)
def test_a_plan_of_tensorrt_is_tied_to_the_gpus_model(
    here: dict[str, Any], refusal: str, folder: Path, edit_manifest: Edit
) -> None:
    ties = {key: getattr(card(), key) for key in TIES}
    edit_manifest(lambda m: m["files"][PLAN]["engine"].update(gpu=ties, flavour="tensorrt"))
    model = find_model(folder / "engine.plan")
    assert check_gpu(model, card()) == ()
    with pytest.raises(PoanError) as refused:
        check_gpu(model, card(**here))
    assert refusal in str(refused.value)


@pytest.mark.parametrize(("what", "before"), [("driver", "13.0"), ("runtime", "13.4")])
def test_another_driver_or_cuda_than_the_builders_is_a_notice(
    what: str, before: str, folder: Path, edit_manifest: Edit
) -> None:
    ties = {key: getattr(card(), key) for key in TIES}
    edit_manifest(lambda m: m["files"][PLAN]["engine"].update(gpu=ties, flavour="tensorrt"))
    (notice,) = check_gpu(find_model(folder / "engine.plan"), card(**{what: "13.1"}))
    assert f"built with CUDA {before} ({what}), this is 13.1; poan-run --verify" in notice


def test_auto_never_takes_a_plan_in_eight_bits(
    folder: Path, edit_manifest: Edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = pytest.importorskip("poan_runtime.engines.tensorrt.cuda", reason="needs cuda-python")
    monkeypatch.setattr(cuda, "find_gpu", lambda index=None: card())
    edit_manifest(lambda m: m["files"][PLAN]["parity"].update(verdict="pass"))
    assert find_runnable(folder, EngineOptions()).path.name == "engine.plan"
    edit_manifest(lambda m: m["files"][PLAN].update(precision="int8"))
    assert find_runnable(folder, EngineOptions()).path.name == "model.onnx"
    edit_manifest(lambda m: m["files"][1].update(precision="int8"))  # and no fp16 file
    assert find_runnable(folder, EngineOptions(device="cuda")).path.name == "model.onnx"


def test_the_bytes_that_were_hashed_are_those_that_are_loaded(folder: Path) -> None:
    """The plan is swapped between the check of the folder and the opening."""
    model = find_model(folder / "engine.plan")
    assert sha256_bytes(read_plan(model)) == model.file.sha256
    model.path.write_bytes(b"another")
    with pytest.raises(PoanError, match="got another"):
        read_plan(model)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"flavour": "tensorrt-lean"}, "files[2].engine.flavour"),
        ({"compute_capabilities": "8.6"}, "files[2].engine.compute_capabilities"),
        ({"version": ""}, "files[2].engine.version"),
        ({"source_onnx_sha256": "?"}, "files[2].engine.source_onnx_sha256"),
        ({"profile": {"min": 2, "opt": 1, "max": 4}}, "files[2].engine.profile"),
    ],
)
def test_a_wrong_field_of_the_manifest_is_named(
    change: dict[str, Any],
    where: str,
    folder: Path,
    scan: Path,
    edit_manifest: Edit,
    capsys: pytest.CaptureFixture[str],
) -> None:
    edit_manifest(lambda m: m["files"][PLAN]["engine"].update(change))
    assert where in refused(capsys, folder / "engine.plan", scan)


def test_a_plan_without_an_engine_entry_is_refused(
    folder: Path, scan: Path, edit_manifest: Edit, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_manifest(lambda m: m["files"][PLAN].pop("engine"))
    assert "expected the entry 'engine'" in refused(capsys, folder / "engine.plan", scan)


def test_a_plan_that_no_manifest_lists_is_refused(
    folder: Path, scan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "engine.plan").rename(folder / "other.plan")
    line = refused(capsys, folder / "other.plan", scan)
    assert "expected a file that the manifest lists" in line


def test_trust_runs_a_plan_whatever_its_hash_and_says_so(folder: Path, scan: Path) -> None:
    plan = folder / "engine.plan"
    for name in (plan.name, "other.plan"):
        (folder / name).write_bytes(plan.read_bytes() + b"?")
        model = find_model(folder / name, Trust(scale=0, tile=0))
        assert model.file.engine is not None
        assert model.file.sha256 == sha256(folder / name)
        assert model.notices == (f"{name}: runs as native code whatever its hash (--trust)",)
    assert cli.main([str(plan), str(scan), "--trust", "--threads", "1"]) == 0


def test_trust_needs_a_manifest_that_tells_what_the_plan_is(
    folder: Path, scan: Path, edit_manifest: Edit, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_manifest(lambda m: m["files"].pop(PLAN))
    line = refused(capsys, folder / "engine.plan", scan, "--trust")
    assert "expected a plan among the manifest's files" in line
    (folder / "manifest.json").unlink()
    line = refused(capsys, folder / "engine.plan", scan, "--trust")
    assert "a plan needs its manifest" in line


def test_a_file_that_is_no_plan_is_refused_by_the_library_without_a_gpu(
    folder: Path, edit_manifest: Edit
) -> None:
    plan = folder / "engine.plan"
    plan.write_bytes(b"not a plan" * 100)
    library = load_library("tensorrt-rtx")
    edit_manifest(lambda m: m["files"][PLAN].update(sha256=sha256(plan)))
    with pytest.raises(PoanError, match="is not a tensorrt-rtx plan, or is damaged"):
        check_header(find_model(plan), plan.read_bytes(), library, gpu=False)


def test_a_good_plan_passes_version_and_header(folder: Path, built: BuiltPlan) -> None:
    library = load_library("tensorrt-rtx")
    model = find_model(folder / "engine.plan")
    check_version(model, library)
    assert check_header(model, read_plan(model), library, gpu=False) == ()


def test_a_gpu_that_the_library_cannot_ask_makes_the_plan_invalid(
    folder: Path, no_gpu: None
) -> None:
    """As if there were a GPU: the library finds none and says no more than invalid."""
    model = find_model(folder / "engine.plan")
    with pytest.raises(PoanError, match="calls it invalid on this GPU"):
        check_header(model, read_plan(model), load_library("tensorrt-rtx"), gpu=True)


def test_a_folder_runs_its_plan_only_where_it_fits_and_is_proven(
    folder: Path, edit_manifest: Edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = pytest.importorskip("poan_runtime.engines.tensorrt.cuda", reason="needs cuda-python")

    def runs(capability: str, **options: str) -> str:
        here = card(compute_capability=capability)
        monkeypatch.setattr(cuda, "find_gpu", lambda index=None: here)
        return find_runnable(folder, EngineOptions(**options)).path.name

    assert runs("8.6") == "model.onnx"  # parity is pending
    edit_manifest(lambda m: m["files"][PLAN]["parity"].update(verdict="pass"))
    assert runs("8.6") == "engine.plan"
    assert runs("12.0") == "model.onnx"
    assert runs("8.6", device="cpu") == "model.onnx"
    assert runs("8.6", backend="onnxruntime") == "model.onnx"
    edit_manifest(lambda m: m["files"][PLAN]["engine"].update(version="1.6.0.1"))
    assert runs("8.6") == "model.onnx"
    assert runs("8.6", device="cuda") == "model.fp16.onnx"


def test_a_plan_that_a_gpu_could_run_but_nobody_compared_is_a_notice(
    folder: Path, edit_manifest: Edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = pytest.importorskip("poan_runtime.engines.tensorrt.cuda", reason="needs cuda-python")
    monkeypatch.setattr(cuda, "find_gpu", lambda index=None: card())
    notice = (
        f"engine.plan: not yet compared with PyTorch on a card; "
        f"poan-run --verify {folder / 'engine.plan'} does it"
    )
    model = find_runnable(folder, EngineOptions())
    assert (model.path.name, model.notices[0]) == ("model.onnx", notice)
    elsewhere = {
        "file": "engine.plan",
        "engine": "tensorrt-rtx",
        "device": "another",
        "version": load_library("tensorrt-rtx").version,
        "parity": {"verdict": "pass", "checks": []},
    }
    edit_manifest(lambda m: m.update(device_verdicts=[elsewhere]))
    edit_manifest(lambda m: m["files"][PLAN]["parity"].update(verdict="pass"))
    assert find_runnable(folder, EngineOptions()).notices[0] == notice
    edit_manifest(lambda m: m["device_verdicts"][0].update(device="a card"))
    assert find_runnable(folder, EngineOptions()).path.name == "engine.plan"
    edit_manifest(lambda m: m["files"][PLAN]["parity"].update(verdict="fail"))
    assert find_runnable(folder, EngineOptions()).notices[0] == (
        "engine.plan: its parity verdict is fail"
    )


def test_a_backend_that_runs_plans_alone_says_why_it_takes_none(
    folder: Path, edit_manifest: Edit, no_gpu: None
) -> None:
    def refusal(backend: str) -> str:
        with pytest.raises(PoanError) as refused:
            find_runnable(folder, EngineOptions(backend=backend))
        assert str(refused.value).startswith(f"{folder}: it has no plan for {backend} that runs")
        assert str(refused.value).endswith("); poan-build makes plans")
        return str(refused.value)

    assert "(engine.plan: no GPU: " in refusal("tensorrt-rtx")
    assert "(engine.plan: built by tensorrt-rtx)" in refusal("tensorrt")
    edit_manifest(lambda m: m["files"][PLAN].update(precision="int8"))
    assert "(engine.plan: in int8, which runs only where" in refusal("tensorrt-rtx")
    edit_manifest(lambda m: m["files"].pop(PLAN))
    assert "(there is none)" in refusal("tensorrt-rtx")


def test_pending_parity_is_one_notice(folder: Path) -> None:
    assert find_model(folder / "engine.plan").notices == (
        "engine.plan: not yet compared with PyTorch (parity pending)",
    )


def test_tiles_come_in_the_batch_that_a_plan_was_built_for(folder: Path) -> None:
    """The layout's own choice, near-equal batches, would leave rows of a fixed batch empty."""
    model = find_model(folder / "engine.plan")
    opened = OpenedBackend(backend=Nothing(), name="", device="", version="", reason="")
    network = Network(model=model, opened=opened, load_s=0.0)
    geometry = Geometry.derive((13, 13, 3), np.eye(4), scale=2, grid="centre", axis=2)
    assert network.layout(geometry, Settings()).batch == 2  # 3 tiles: 2 calls of 2, not of 2 and 1
    assert model.file.engine is not None
    engine = dataclasses.replace(model.file.engine, profile=full_batches(8))
    model = dataclasses.replace(model, file=dataclasses.replace(model.file, engine=engine))
    network = dataclasses.replace(network, model=model)
    assert network.layout(geometry, Settings()).batch == 8
    assert network.layout(geometry, Settings(batch=3)).batch == 3


class Nothing(Backend):
    def run(self, batch: Tiles) -> Tiles:
        raise AssertionError("nothing runs")


def test_of_two_gpus_the_one_that_is_named_decides_which_file_runs(
    folder: Path, edit_manifest: Edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = pytest.importorskip("poan_runtime.engines.tensorrt.cuda", reason="needs cuda-python")
    cards = [card(compute_capability="12.0"), card(compute_capability="8.6")]
    monkeypatch.setattr(cuda, "find_gpu", lambda index=None: cards[index or 0])
    edit_manifest(lambda m: m["files"][PLAN]["parity"].update(verdict="pass"))
    named = {n: find_runnable(folder, EngineOptions(device=f"cuda:{n}")) for n in (0, 1)}
    assert [named[n].path.name for n in (0, 1)] == ["model.fp16.onnx", "engine.plan"]
