"""The gate of plans on stand-ins for the GPU: one engine at a time, and each is closed."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cuda.bindings", reason="needs cuda-python")
pytest.importorskip("tensorrt_rtx", reason="the folder under test holds a real plan")

from poan_runtime.commands import run as cli
from poan_runtime.commands import verify_model
from poan_runtime.engines.backend import OpenedBackend
from poan_runtime.engines.nvidia import Gpu
from poan_runtime.engines.tensorrt import inside as look
from poan_runtime.engines.tensorrt.build import builder, judge
from poan_runtime.engines.verify import read_vectors
from poan_runtime.errors import PoanError
from poan_runtime.models.find import Model
from poan_runtime.models.manifest import PENDING, read_manifest
from tests.runtime.engines.test_verify import Right, Rows, with_stages

CARD = Gpu(index=0, name="a card", compute_capability="8.6", memory_bytes=8 << 30)


class Counted(Rows):
    """Knows how many of its kind are open; every answer is wrong."""

    open = 0
    most = 0

    def __init__(self) -> None:
        super().__init__(1.0)
        Counted.open += 1
        Counted.most = max(Counted.most, Counted.open)

    def close(self) -> None:
        Counted.open -= 1


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    Counted.open = Counted.most = 0
    monkeypatch.setattr(judge, "find_gpu_here", lambda: (CARD, CARD.name))
    monkeypatch.setattr(judge, "inside_of", lambda model: None)
    monkeypatch.setattr(
        judge,
        "open_backend",
        lambda model, options, judged: OpenedBackend(
            backend=Counted(), name="tensorrt-rtx", device="cuda:0 (a card)", version="1", reason=""
        ),
    )


def test_each_engine_is_closed_before_the_next_is_opened(folder: Path, card: None) -> None:
    """Two at once would not fit a card of 8 GB."""
    said: list[str] = []
    failed = judge.gate_plans(folder, ["engine.plan", "engine.plan"], said.append)
    assert failed == ["engine.plan", "engine.plan"]
    assert said == ["engine.plan: parity fail on cuda:0 (a card)"] * 2
    assert (Counted.open, Counted.most) == (0, 1)
    (verdict,) = read_manifest(folder).device_verdicts
    assert (verdict.device, verdict.parity.verdict) == ("a card", "fail")


def test_an_engine_is_closed_where_the_comparison_ends_in_an_error(
    folder: Path, card: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(*arguments: object, **more: object) -> None:
        raise PoanError("the GPU has too little memory")

    monkeypatch.setattr(judge, "verify", ends)
    with pytest.raises(PoanError, match="too little memory"):
        judge.gate_plans(folder, ["engine.plan"], print)
    assert Counted.open == 0
    file = read_manifest(folder).file("engine.plan")
    assert file is not None
    assert file.parity == PENDING


@pytest.mark.parametrize("face", ["poan-build", "poan-run --verify"])
@pytest.mark.parametrize(("wrong", "verdict"), [(0.0, "pass"), (0.3, "fail")])
def test_a_plans_engine_is_looked_into_and_a_wrong_z_fails_it(
    face: str,
    wrong: float,
    verdict: str,
    folder: Path,
    edit_manifest: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The output is right in both: behind the attention's gate it hides the root."""
    z = with_stages(folder, edit_manifest)
    (case,) = read_vectors(read_manifest(folder), folder)
    looked: list[Path] = []

    def opens(model: Model, options: object, judged: bool) -> OpenedBackend:
        device = "cuda:0 (a card)"
        right = Right(case)
        return OpenedBackend(backend=right, name="rtx", device=device, version="1.7", reason="")

    def inside(model: Model, tiles: Any, stages: Any, index: int | None = None) -> Any:
        looked.append(model.path)
        return {"real_0": {"body.8.z": np.float32((1 + wrong) * z)}}

    monkeypatch.setattr(judge, "find_gpu_here", lambda: (CARD, CARD.name))
    for module in (judge, verify_model):
        monkeypatch.setattr(module, "open_backend", opens)
    monkeypatch.setattr(look, "look_inside", inside)
    failed: object
    if face == "poan-build":
        failed = judge.gate_plans(folder, ["engine.plan"], print) == ["engine.plan"]
    else:
        failed = cli.main(["--verify", str(folder / "engine.plan")]) == 3
    assert failed is (verdict == "fail")
    assert looked == [folder / "engine.plan"]
    (found,) = read_manifest(folder).device_verdicts
    assert found.parity.verdict == verdict
    (stage,) = [check for check in found.parity.checks if check.stage == "body.8.z"]
    assert stage.value == pytest.approx(wrong, abs=1e-6)  # float32 rounding of z


@pytest.mark.parametrize("known", [None, b"timings"])
def test_timings_of_earlier_builds_are_used_where_there_are_any(
    known: bytes | None, tmp_path: Path
) -> None:
    path, used = tmp_path / "timings.cache", []
    if known is not None:
        path.write_bytes(known)
    config: Any = SimpleNamespace(
        create_timing_cache=lambda blob: blob,
        set_timing_cache=lambda cache, ignore_mismatch: used.append(cache),
    )
    assert builder._timing_cache(config, str(path)) == (known or b"")
    assert used == [known or b""]
    assert builder._timing_cache(config, None) is None


def test_verify_looks_into_the_engine_on_the_gpu_that_was_named(
    folder: Path, edit_manifest: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    z = with_stages(folder, edit_manifest)
    (case,) = read_vectors(read_manifest(folder), folder)
    asked: list[int | None] = []

    def opens(model: Model, options: object, judged: bool) -> OpenedBackend:
        device = "cuda:1 (a card)"
        return OpenedBackend(
            backend=Right(case), name="rtx", device=device, version="1.7", reason=""
        )

    def inside(model: Model, tiles: Any, stages: Any, index: int | None = None) -> Any:
        asked.append(index)
        return {"real_0": {"body.8.z": z}}

    monkeypatch.setattr(verify_model, "open_backend", opens)
    monkeypatch.setattr(look, "look_inside", inside)
    assert cli.main(["--verify", str(folder / "engine.plan"), "--device", "cuda:1"]) == 0
    assert asked == [1]


def test_a_plan_for_another_gpu_is_not_opened_and_stays_pending(
    folder: Path, card: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = dataclasses.replace(CARD, compute_capability="12.0")
    monkeypatch.setattr(judge, "find_gpu_here", lambda: (other, other.name))
    said: list[str] = []
    assert judge.gate_plans(folder, ["engine.plan"], said.append) == []
    assert Counted.most == 0
    (line,) = said
    assert line.startswith("engine.plan: parity pending (a card); on the target: poan-run --verify")
