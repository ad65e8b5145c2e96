"""A plan is opened on stand-ins for card and CUDA; plan, manifest and library are real."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cuda.bindings", reason="needs cuda-python")
pytest.importorskip("tensorrt_rtx", reason="the folder under test holds a real plan")

from poan_runtime.engines.backend import LANES, EngineOptions, open_backend
from poan_runtime.engines.tensorrt import backend, cuda
from poan_runtime.engines.tensorrt.library import load_library
from poan_runtime.errors import PoanError
from poan_runtime.models.find import find_model
from tests.runtime.engines.tensorrt.test_lanes import LOG, PORTS, ROOM, SEEN, Contexts, Home, host

__all__ = ["host"]
CARD = cuda.Gpu(index=1, name="a card", compute_capability="8.6", memory_bytes=1 << 33)


@pytest.fixture
def card(host: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """A GPU that runs the plan; gives which number was asked for, and which bytes were loaded."""
    seen: dict[str, list[Any]] = {"index": [], "loaded": []}
    real = backend.check_header

    def finds(index: int | None = None) -> cuda.Gpu:
        seen["index"].append(index)
        return CARD

    def loads(model: Any, plan: bytes, library: Any) -> object:
        seen["loaded"].append(plan)
        return object()

    def header(model: Any, plan: bytes, library: Any, *, gpu: bool) -> tuple[str, ...]:
        return () if gpu else real(model, plan, library, gpu=False)

    monkeypatch.setattr(cuda, "find_gpu", finds)
    monkeypatch.setattr(cuda, "Home", lambda gpu: Home())
    for name, stand_in in (
        ("check_header", header),
        ("deserialised", loads),
        ("find_ports", lambda model, library, engine: PORTS),
        ("KernelCache", lambda library, gpu, sha256: Contexts()),
    ):
        monkeypatch.setattr(backend, name, stand_in)
    return seen


def test_the_gpu_that_was_named_runs_it_and_every_lane_is_warm(
    folder: Path, card: dict[str, list[Any]]
) -> None:
    opened = open_backend(find_model(folder / "engine.plan"), EngineOptions(device="cuda:1"))
    assert card["index"] == [1]
    assert opened.device == "cuda:1 (a card)"
    assert len(SEEN) == LANES
    opened.backend.close()


def test_the_bytes_that_were_checked_are_loaded_whatever_the_file_holds_by_then(
    folder: Path, card: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = find_model(folder / "engine.plan")
    good, reads = model.path.read_bytes(), backend.read_plan

    def swapped(model: Any) -> bytes:
        plan: bytes = reads(model)
        model.path.write_bytes(b"another")
        return plan

    monkeypatch.setattr(backend, "read_plan", swapped)
    open_backend(model, EngineOptions()).backend.close()
    assert card["loaded"] == [good]


def test_an_engine_that_has_no_room_leaves_nothing_behind(
    folder: Path, card: dict[str, list[Any]]
) -> None:
    ROOM[0] = 0
    with pytest.raises(PoanError, match="too little memory") as held:  # as a host program may
        open_backend(find_model(folder / "engine.plan"), EngineOptions())
    assert held.value.__traceback__ is not None
    assert LOG[-1] == "left"
    assert LOG.count("stream released") == 1
    assert LOG.count("pushed") == LOG.count("popped")


def test_a_plan_runs_by_the_verdict_of_this_gpu_alone(
    folder: Path, card: dict[str, list[Any]], edit_manifest: Any
) -> None:
    """The plan's own verdict is of whatever GPU it was earned on."""
    verdict = {
        "file": "engine.plan",
        "engine": "tensorrt-rtx",
        "device": "another",
        "version": load_library("tensorrt-rtx").version,
        "parity": {"verdict": "fail", "checks": []},
    }
    ROOM[0] = 2 * LANES  # for two engines, one after the other
    edit_manifest(lambda m: m["files"][2]["parity"].update(verdict="pass"))
    edit_manifest(lambda m: m.update(device_verdicts=[verdict]))
    (notice,) = open_backend(find_model(folder / "engine.plan"), EngineOptions()).notices
    assert "not yet compared with PyTorch by tensorrt-rtx" in notice
    edit_manifest(lambda m: m["device_verdicts"][0].update(device="a card"))
    failed = find_model(folder / "engine.plan")
    with pytest.raises(PoanError, match="on a card is fail"):
        open_backend(failed, EngineOptions())
    assert open_backend(failed, EngineOptions(), judged=False).notices == ()
