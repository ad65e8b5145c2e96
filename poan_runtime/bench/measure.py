"""Models in turn, round after round: latency by stage, whole scans, cold starts."""

import collections
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poan_runtime.bench.doubts import doubts, roofline_percent, variation
from poan_runtime.bench.machine import describe_machine, snapshot
from poan_runtime.bench.sampler import sampled
from poan_runtime.bench.statistics import ratios, summarise
from poan_runtime.bench.timeline import Span, spans_of, trace
from poan_runtime.engines import PRECISIONS
from poan_runtime.engines.backend import LANES, EngineOptions
from poan_runtime.engines.nvidia import device_index
from poan_runtime.errors import PoanError
from poan_runtime.files import WholeFile
from poan_runtime.images.volume import Volume
from poan_runtime.network import Network, Settings, load_network
from poan_runtime.super_resolve import upscale

VERSION = 1
STAGES = ("total", "enqueue", "h2d", "compute", "d2h")
"""A backend that does not tell its stages apart has ``total`` alone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What to measure. ``models`` are MODEL, with @BACKEND, @fp32 or @bf16 behind it."""

    models: tuple[str, ...]
    batch: int | None = None
    iterations: int = 50
    duration_s: float = 0.0
    """At least so long, however many iterations that takes."""
    warmup: int = 5
    warmup_ms: float = 0.0
    """At least so long, however many batches that takes."""
    percentiles: tuple[float, ...] = ()
    """Beside those that are always given."""
    bandwidth_gb_s: float | None = None
    """Of the GPU's memory, measured, for the share of it that a plan uses."""
    layers: bool = False
    """Ask a plan what each of its layers takes."""
    timeline: Path | None = None
    """Where to write when each batch ran, as trace events."""
    scan_iterations: int = 1
    scan: Path | None = None
    cold: bool = True
    device: str = "auto"
    threads: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contender:
    """A loaded model, and the samples taken of it in milliseconds, by stage."""

    label: str
    network: Network
    options: EngineOptions
    batch: NDArray[np.float32]
    samples: dict[str, list[float]]
    warm_up_ms: list[float]
    spans: list[Span]
    """When the batches that count ran, stage by stage."""


def bench(request: Request) -> dict[str, Any]:
    """The whole benchmark as a JSON document."""
    if not request.models:
        raise PoanError("expected at least one model")
    before = snapshot()
    contenders = [_contender(name, request) for name in request.models]
    labels = [contender.label for contender in contenders]
    if len(set(labels)) != len(labels):
        raise PoanError(f"expected different models, got {', '.join(labels)}")
    for contender in contenders:
        _warm_up(contender, request)
        contender.spans.clear()
    clocks: dict[str, Any] = {}
    with sampled(clocks, device_index(request.device) or 0):
        _take_turns(contenders, request)
        flows = {contender.label: _in_flight(contender, request) for contender in contenders}
    if request.timeline is not None:
        kept = trace([(contender.label, contender.spans) for contender in contenders])
        with WholeFile(request.timeline) as file:
            file.write(json.dumps(kept).encode())
    scans = {contender.label: _scan_seconds(contender, request) for contender in contenders}
    results = [
        _result(contender, scans[contender.label], request)
        | {"tiles_per_second_in_flight": flows[contender.label]}
        for contender in contenders
    ]
    return {
        "bench_version": VERSION,
        "machine": describe_machine(),
        "before": before,
        "after": snapshot(),
        "gpu_during": clocks or None,
        "settings": {
            "duration_s": request.duration_s,
            "warmup_ms": request.warmup_ms,
            "iterations": request.iterations,
            "warmup": request.warmup,
            "order": "the models take turns; each round starts with the next one",
            "scan": str(request.scan) if request.scan else "made-up volume",
        },
        "models": results,
        "ratios_to_first": {
            contender.label: ratios(contenders[0].samples["total"], contender.samples["total"])
            for contender in contenders[1:]
        },
    }


def _warm_up(contender: Contender, request: Request) -> None:
    kept = contender.warm_up_ms
    while len(kept) < request.warmup or sum(kept) < request.warmup_ms:
        kept.append(_sample(contender)["total"])


def _take_turns(contenders: Sequence[Contender], request: Request) -> None:
    """Rounds in which each has one turn, as many and as long as were asked for."""
    start, turn = time.perf_counter(), 0
    while turn < request.iterations or time.perf_counter() - start < request.duration_s:
        first = turn % len(contenders)  # nobody is always first after nobody
        for contender in (*contenders[first:], *contenders[:first]):
            for stage, milliseconds in _sample(contender).items():
                contender.samples[stage].append(milliseconds)
        turn += 1


def _in_flight(contender: Contender, request: Request) -> float:
    """Tiles per second with `LANES` batches under way, as the run loop has them."""
    backend, batch = contender.network.opened.backend, contender.batch
    waits: collections.deque[tuple[float, str, Callable[[], object]]] = collections.deque()

    def finish() -> None:
        begun, lane, wait = waits.popleft()
        wait()
        contender.spans.append(Span(lane, 1e3 * begun, 1e3 * (time.perf_counter() - begun)))

    start = time.perf_counter()
    for turn in range(request.iterations):
        lane = f"in flight, lane {turn % LANES}"
        waits.append((time.perf_counter(), lane, backend.start(batch)))
        if len(waits) == LANES:
            finish()
    while waits:
        finish()
    return request.iterations * len(batch) / (time.perf_counter() - start)


def _contender(name: str, request: Request) -> Contender:
    model, *wishes = name.split("@")
    precision = next((wish for wish in wishes if wish in PRECISIONS), "auto")
    backend = next((wish for wish in wishes if wish not in PRECISIONS), "auto")
    options = EngineOptions(
        backend=backend, device=request.device, threads=request.threads, precision=precision
    )
    network = load_network(model, options)
    manifest = network.model.manifest
    engine = network.model.file.engine
    accepted = manifest.batch if engine is None else engine.profile
    count = request.batch or accepted.opt
    if not accepted.min <= count <= accepted.max:
        raise PoanError(f"--batch: {model} takes {accepted.min} to {accepted.max}, got {count}")
    shape = (count, 1, manifest.tile, manifest.tile)
    return Contender(
        label=name,
        network=network,
        options=options,
        batch=np.random.default_rng(0).random(shape, np.float32),
        samples={stage: [] for stage in STAGES},
        warm_up_ms=[],
        spans=[],
    )


def _sample(contender: Contender) -> dict[str, float]:
    """Milliseconds of one batch, by stage.

    The total is that of a run as poan-run runs, from its captured graph; the stages are those of
    a second one, with events between them, which no graph allows.
    """
    backend: Any = contender.network.opened.backend
    start = time.perf_counter()
    backend.run(contender.batch)
    total = 1e3 * (time.perf_counter() - start)
    contender.spans.append(Span("total", 1e3 * start, total))
    timed = getattr(backend, "timed", None)
    if timed is None:
        return {"total": total}
    start = time.perf_counter()
    _, times = timed(contender.batch)
    stages = {
        "enqueue": times.enqueue_ms,
        "h2d": times.h2d_ms,
        "compute": times.compute_ms,
        "d2h": times.d2h_ms,
    }
    contender.spans.extend(spans_of(1e3 * start, stages))
    return {"total": total, **stages}


def _layers(contender: Contender, request: Request) -> dict[str, Any] | None:
    """Each layer's time and facts; None where that was not asked for, or the engine tells none."""
    of = getattr(contender.network.opened.backend, "layers", None)
    if of is None or not request.layers:
        return None
    return dataclasses.asdict(of(contender.batch, request.iterations))


def _scan_seconds(contender: Contender, request: Request) -> list[float]:
    """Seconds to super-resolve a whole volume in memory, constant tiles run like all others."""
    volume: Volume | Path
    if request.scan is not None:
        volume = request.scan
    else:
        tile = contender.network.model.manifest.tile
        data = np.random.default_rng(1).random((2 * tile, 2 * tile, 8), np.float32)
        volume = Volume(data=data, affine=np.diag([1.0, 1.0, 3.0, 1.0]))
    seconds = []
    for _ in range(request.scan_iterations):
        start = time.perf_counter()
        upscale(volume, contender.network, Settings(skip=False))
        seconds.append(time.perf_counter() - start)
    return seconds


def _result(contender: Contender, scan_s: list[float], request: Request) -> dict[str, Any]:
    network, samples = contender.network, contender.samples
    manifest = network.model.manifest
    tiles = len(contender.batch)
    total_s = sum(samples["total"]) / 1e3
    measured = {stage: values for stage, values in samples.items() if values}
    return {
        "label": contender.label,
        "file": str(network.model.path),
        "sha256": network.model.file.sha256,
        "precision": network.opened.precision or network.model.file.precision,
        "scale": manifest.scale,
        "tile": manifest.tile,
        "batch": tiles,
        "gmac_per_tile": manifest.gmac_per_tile,
        "backend": network.opened.name,
        "backend_version": network.opened.version,
        "device": network.opened.device,
        "notices": [*network.notices, *_without(contender, request)],
        "latency_ms": {
            stage: summarise(values, request.percentiles) for stage, values in measured.items()
        },
        "variation": {stage: variation(values) for stage, values in measured.items()},
        "doubts": doubts(measured),
        "roofline_percent": _roofline(contender, request),
        "layers": _layers(contender, request),
        "tiles_per_second": tiles * len(samples["total"]) / total_s if total_s else None,
        "scan_s": summarise(scan_s) if scan_s else None,
        "cold_start": cold_starts(contender) if request.cold else None,
        "warm_up_ms": contender.warm_up_ms,
        "samples_ms": measured,
        "scan_samples_s": scan_s,
    }


def _without(contender: Contender, request: Request) -> list[str]:
    """What was asked for and this engine does not tell."""
    if request.layers and not hasattr(contender.network.opened.backend, "layers"):
        return [f"--layers: {contender.network.opened.name} tells none, a plan on a GPU does"]
    return []


def _roofline(contender: Contender, request: Request) -> float | None:
    """Share of the bandwidth that a plan uses; None for what is no plan, or without a bandwidth."""
    engine = contender.network.model.file.engine
    moved = None if engine is None else engine.report.get("bytes_moved")
    computing = contender.samples["compute"]
    if moved is None or request.bandwidth_gb_s is None or not computing:
        return None
    return roofline_percent(int(moved), float(np.median(computing)), request.bandwidth_gb_s)


def asked(options: EngineOptions) -> dict[str, Any]:
    """What the user asked for, as JSON takes it; a fresh process finds out the rest itself."""
    return {name: getattr(options, name) for name in ("backend", "device", "threads", "precision")}


def cold_starts(contender: Contender) -> dict[str, Any]:
    """Two fresh processes: one with an empty cache of kernels, one with what that one left."""
    with tempfile.TemporaryDirectory() as scratch:
        order = Path(scratch) / "order.json"
        document = {
            "model": str(contender.network.model.path),
            "options": asked(contender.options),
            "batch": len(contender.batch),
        }
        order.write_text(json.dumps(document), "utf-8")
        environment = {**os.environ, "XDG_CACHE_HOME": scratch}
        return {cache: _cold(order, environment) for cache in ("cold_cache", "warm_cache")}


def _cold(order: Path, environment: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "poan_runtime.bench.cold", str(order)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise PoanError(f"a cold start failed: {said[-1] if said else done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found
