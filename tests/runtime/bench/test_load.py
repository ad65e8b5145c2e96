"""poan-bench beside trtexec: durations, percentiles, what bounds a latency, the GPU meanwhile."""

import contextlib
import dataclasses
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poan_runtime.bench import machine, measure
from poan_runtime.bench.doubts import doubts, variation
from poan_runtime.bench.measure import Request, bench
from poan_runtime.bench.sampler import sampled
from poan_runtime.bench.statistics import summarise
from poan_runtime.bench.table import lines_of
from poan_runtime.bench.timeline import Span, spans_of, trace
from poan_runtime.commands import bench as cli
from poan_runtime.engines.backend import EngineOptions
from poan_runtime.engines.cores import TileByTile
from poan_runtime.models.manifest import BatchRange, Engine
from poan_runtime.network import Network

pytest.importorskip("cuda.bindings", reason="needs cuda-python")
from poan_runtime.engines.tensorrt.lanes import StageTimes
from poan_runtime.engines.tensorrt.layers import Layers

ENGINE = Engine(
    flavour="tensorrt-rtx",
    version="1",
    compute_capabilities=("8.6",),
    builder_flags=(),
    source_onnx_sha256="0" * 64,
    profile=BatchRange(min=8, opt=8, max=8),
    report={"bytes_moved": 6_000_000_000},
)


def table(document: dict[str, Any]) -> str:
    """What the command prints."""
    return "\n".join(lines_of(document))


def run(model: Path, **changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "models": (f"{model}@onnxruntime",),
        "iterations": 4,
        "warmup": 1,
        "cold": False,
        "device": "cpu",
        "threads": 1,
        "scan_iterations": 0,
    }
    return bench(Request(**(settings | changes)))


def test_a_run_lasts_as_long_as_was_asked_for(
    nearest_x2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that goes on by a millisecond whenever it is looked at."""
    looks = itertools.count()
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(looks) / 1e3)
    (model,) = run(nearest_x2, iterations=1, duration_s=0.02, warmup_ms=4.5)["models"]
    samples, warm_up = model["samples_ms"]["total"], model["warm_up_ms"]
    assert warm_up == pytest.approx([1.0] * 5)  # rounding of float64, here and below
    assert samples == pytest.approx([1.0] * 7)  # three looks each: two for it, one for the end
    assert model["tiles_per_second"] == pytest.approx(8 / 1e-3)


def test_any_percentile_is_given_and_stands_in_the_table(nearest_x2: Path) -> None:
    document = run(nearest_x2, percentiles=(75.0, 99.9))
    figures = document["models"][0]["latency_ms"]["total"]
    assert figures["p75"] <= figures["p90"] <= figures["p99.9"] == figures["max"]
    assert "p99.9" in table(document)
    assert summarise([1.0, 2.0, 3.0, 4.0], (25,))["p25"] == 1.0


@pytest.mark.parametrize(
    ("option", "wrong", "expected"),
    [
        ("--percentile", "120", "from 0 to 100"),
        ("--duration", "-1", "at least 0"),
        ("--warmup-ms", "nan", "at least 0"),
        ("--bandwidth", "inf", "at least 1"),
        ("--bandwidth", "much", "at least 1"),
    ],
)
def test_a_number_that_cannot_be_is_refused_before_anything_is_measured(
    option: str, wrong: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as usage:
        cli.main(["nowhere", f"{option}={wrong}"])
    assert usage.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{option}: expected a number {expected}, got {wrong}" in line


def test_the_flow_with_two_batches_under_way_is_measured(
    nearest_x2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way: list[int] = [0]
    start = TileByTile.start

    def counted(self: TileByTile, batch: Any) -> Any:
        under_way.append(under_way[-1] + 1)
        wait = start(self, batch)

        def ends() -> Any:
            under_way.append(under_way[-1] - 1)
            return wait()

        return ends

    monkeypatch.setattr(TileByTile, "start", counted)
    document = run(nearest_x2)
    assert (max(under_way), under_way[-1]) == (2, 0)
    assert document["models"][0]["tiles_per_second_in_flight"] > 0
    assert "two batches in flight" in table(document)


def test_the_timeline_shows_every_batch_that_counts(nearest_x2: Path, tmp_path: Path) -> None:
    out = tmp_path / "timeline.json"
    (model,) = run(nearest_x2, warmup=3, timeline=out)["models"]
    events = json.loads(out.read_text())["traceEvents"]
    names = {event["args"]["name"] for event in events if event["ph"] == "M"}
    assert model["label"] in names
    assert {"batch, host to host", "in flight, lane 0", "in flight, lane 1"} <= names
    batches = [e for e in events if e["ph"] == "X" and e["name"] == "batch, host to host"]
    # microseconds there, milliseconds here, both from one clock: rounding of float64
    assert [e["dur"] / 1e3 for e in batches] == pytest.approx(model["samples_ms"]["total"])
    ends = [e["ts"] + e["dur"] for e in batches]
    assert all(e["ts"] >= end for e, end in zip(batches[1:], ends, strict=False))


def test_stages_of_a_device_follow_one_another_in_the_timeline() -> None:
    spans = [Span("total", 0.0, 9.0), *spans_of(10.0, {"enqueue": 1.0, "h2d": 2.0, "d2h": 3.0})]
    events = trace([("a plan", spans)])["traceEvents"]
    drawn = {e["name"]: (e["ts"], e["dur"], e["tid"]) for e in events if e["ph"] == "X"}
    assert drawn["enqueue"] == (10_000, 1_000, 1)
    assert drawn["H2D"] == (10_000, 2_000, 2)
    assert drawn["D2H"] == (12_000, 3_000, 3)


def test_layers_are_asked_for_by_name_and_the_slowest_stand_in_the_table(
    nearest_x2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers themselves need a GPU; here their way into the document and the table."""
    times = {f"layer {index}": float(index) for index in range(20)}
    asked = []

    def layers(self: TileByTile, batch: Any, count: int) -> Layers:
        asked.append((len(batch), count))
        return Layers(median_ms=times, information=["as the inspector has it"])

    (without,) = run(nearest_x2, layers=True)["models"]
    assert without["layers"] is None
    assert "--layers: onnxruntime tells none, a plan on a GPU does" in without["notices"]
    monkeypatch.setattr(TileByTile, "layers", layers, raising=False)
    assert run(nearest_x2)["models"][0]["layers"] is None
    document = run(nearest_x2, layers=True)
    assert document["models"][0]["layers"]["median_ms"] == times
    assert asked == [(8, 4)]
    printed = table(document)
    assert "layers (20)                190.000 ms" in printed
    assert "19.000 ms  10.0%  layer 19" in printed
    assert "layer 9\n" not in printed


def test_a_plan_is_measured_on_the_gpu_that_was_named_with_all_that_bounds_it(
    nearest_x2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan's facts, its stages and the sampler are stand-ins; what becomes of them is not."""
    named: list[tuple[str, object]] = []
    load = measure.load_network

    def loads(model: str, options: EngineOptions) -> Network:
        named.append(("network", options.device))
        network = load(model, dataclasses.replace(options, device="cpu"))
        file = dataclasses.replace(network.model.file, engine=ENGINE)
        return dataclasses.replace(network, model=dataclasses.replace(network.model, file=file))

    @contextlib.contextmanager
    def samples(into: dict[str, Any], index: int) -> Iterator[None]:
        named.append(("sampler", index))
        yield
        into["clocks.sm"] = {"min": 1.0, "mean": 2.0, "max": 3.0}

    times = StageTimes(enqueue_ms=5.0, h2d_ms=1.0, compute_ms=4.0, d2h_ms=2.0)
    looks = itertools.count()
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(looks) / 1e3)
    monkeypatch.setattr(measure, "load_network", loads)
    monkeypatch.setattr(measure, "sampled", samples)
    monkeypatch.setattr(TileByTile, "timed", lambda self, batch: (batch, times), raising=False)
    document = run(nearest_x2, device="cuda:1", bandwidth_gb_s=3000.0)
    assert named == [("network", "cuda:1"), ("sampler", 1)]
    assert document["gpu_during"] == {"clocks.sm": {"min": 1.0, "mean": 2.0, "max": 3.0}}
    (model,) = document["models"]
    assert model["roofline_percent"] == pytest.approx(50.0)  # 6 GB in 4 ms of 3000 GB/s
    assert [doubt.split(":")[0] for doubt in model["doubts"]] == ["enqueue-bound"]
    assert set(model["variation"]) == {"total", "enqueue", "h2d", "compute", "d2h"}
    # the run that poan-run makes, two looks at this clock, and not the sum of the stages
    assert model["samples_ms"]["total"] == pytest.approx([1.0] * 4)
    printed = table(document)
    assert "of the bandwidth 50.0 %" in " ".join(printed.split())
    assert "doubt: enqueue-bound" in printed


STEADY = {"total": [9.0] * 9, "enqueue": [1.0] * 9, "compute": [5.0] * 9}


@pytest.mark.parametrize(
    ("changed", "doubt"),
    [
        ({}, None),
        ({"enqueue": [6.0] * 9}, "enqueue-bound"),
        ({"h2d": [3.0] * 9, "d2h": [2.5] * 9}, "transfer-bound"),
        ({"compute": [4.0, 6.0] * 4}, "unstable: compute varies by 20%"),
    ],
)
def test_what_bounds_a_latency_is_said(changed: dict[str, Any], doubt: str | None) -> None:
    found = doubts(STEADY | {"h2d": [1.0] * 9, "d2h": [1.0] * 9} | changed)
    assert len(found) == (doubt is not None)
    assert doubt is None or found[0].startswith(doubt)


def test_the_variation_of_equal_samples_is_zero() -> None:
    assert variation([3.0, 3.0]) == 0


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name, whose answer is in a file beside it."""
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\n"
        f'case "$@" in *loop*) cat {tmp_path}/samples;; esac\n'
        f'echo "$@" >> {tmp_path}/asked\n'
        'case "$@" in *loop*) exec sleep 60;; esac\n'
        f'case "$@" in *event_reasons*) [ -e {tmp_path}/old ] && exit 2;; esac\n'
        "echo 'card, 580.1, P0, 1, 2, 3, 4, 5, 6, 0x0000000000000004'\n"
    )
    program.chmod(0o755)
    (tmp_path / "samples").write_text("1000, 200, 50\n2000, 300, 100\n")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def test_clocks_and_power_are_sampled_while_it_runs(nvidia_smi: Path) -> None:
    found: dict[str, Any] = {}
    with sampled(found, 1):
        while not (nvidia_smi / "asked").is_file():
            pass
    assert "--id=1" in (nvidia_smi / "asked").read_text()
    assert found == {
        "clocks.sm": {"min": 1000, "mean": 1500, "max": 2000},
        "power.draw": {"min": 200, "mean": 250, "max": 300},
        "utilization.gpu": {"min": 50, "mean": 75, "max": 100},
    }


@pytest.mark.parametrize("old", [False, True])
def test_what_slows_the_clocks_is_asked_by_its_name_of_today_and_then_of_before(
    old: bool, nvidia_smi: Path
) -> None:
    if old:
        (nvidia_smi / "old").touch()
    (card,) = machine._gpus() or []
    assert card["clocks_event_reasons.active"] == "0x0000000000000004"
    assert len((nvidia_smi / "asked").read_text().splitlines()) == 1 + old


def test_without_nvidia_smi_nothing_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    found: dict[str, Any] = {}
    with sampled(found):
        pass
    assert found == {}


def test_the_command_hands_on_all_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Request] = []

    def measured(request: Request) -> dict[str, Any]:
        asked.append(request)
        return {"models": [], "ratios_to_first": {}}

    monkeypatch.setattr(measure, "bench", measured)
    timeline = tmp_path / "timeline.json"
    options = "--duration 2 --warmup-ms 3 --percentile 75 --percentile 99.9 --bandwidth 3000"
    more = "--iterations 7 --warmup 1 --device cuda:1 --layers --no-cold --scan-iterations 0"
    command = ["a", "b", *options.split(), *more.split(), "--timeline", str(timeline)]
    assert cli.main(command) == 0
    assert asked == [
        Request(
            models=("a", "b"),
            iterations=7,
            duration_s=2.0,
            warmup=1,
            warmup_ms=3.0,
            percentiles=(75.0, 99.9),
            bandwidth_gb_s=3000.0,
            layers=True,
            timeline=timeline,
            scan_iterations=0,
            cold=False,
            device="cuda:1",
        )
    ]
