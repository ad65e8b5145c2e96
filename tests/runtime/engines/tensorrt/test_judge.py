"""The gate of plans on stand-ins for the GPU: one engine at a time, and each is closed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("tensorrt_rtx", reason="the folder under test holds a real plan")

from poan_runtime.engines.backend import OpenedBackend
from poan_runtime.engines.nvidia import Gpu
from poan_runtime.engines.tensorrt.build import builder, judge
from poan_runtime.errors import PoanError
from poan_runtime.models.manifest import PENDING, read_manifest
from tests.runtime.engines.test_verify import Rows

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
