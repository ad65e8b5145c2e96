"""Models in turn, round after round: latency by stage, whole scans, cold starts."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poan_runtime.bench.machine import describe_machine, snapshot
from poan_runtime.bench.statistics import ratios, summarise
from poan_runtime.engines.backend import EngineOptions
from poan_runtime.engines.precision import PRECISIONS
from poan_runtime.errors import PoanError
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
    warmup: int = 5
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
        contender.warm_up_ms.extend(_sample(contender)["total"] for _ in range(request.warmup))
    for turn in range(request.iterations):
        first = turn % len(contenders)  # nobody is always first after nobody
        for contender in (*contenders[first:], *contenders[:first]):
            for stage, milliseconds in _sample(contender).items():
                contender.samples[stage].append(milliseconds)
    scans = {contender.label: _scan_seconds(contender, request) for contender in contenders}
    results = [_result(contender, scans[contender.label], request) for contender in contenders]
    return {
        "bench_version": VERSION,
        "machine": describe_machine(),
        "before": before,
        "after": snapshot(),
        "settings": {
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


def _contender(name: str, request: Request) -> Contender:
    model, *wishes = name.split("@")
    precision = next((wish for wish in wishes if wish in PRECISIONS), "auto")
    backend = next((wish for wish in wishes if wish not in PRECISIONS), "auto")
    options = EngineOptions(
        backend=backend, device=request.device, threads=request.threads, precision=precision
    )
    network = load_network(model, options)
    manifest = network.model.manifest
    count = request.batch or manifest.batch.opt
    if not manifest.batch.min <= count <= manifest.batch.max:
        raise PoanError(
            f"--batch: {model} takes {manifest.batch.min} to {manifest.batch.max}, got {count}"
        )
    shape = (count, 1, manifest.tile, manifest.tile)
    return Contender(
        label=name,
        network=network,
        options=options,
        batch=np.random.default_rng(0).random(shape, np.float32),
        samples={stage: [] for stage in STAGES},
        warm_up_ms=[],
    )


def _sample(contender: Contender) -> dict[str, float]:
    """Milliseconds of one batch, by stage."""
    backend: Any = contender.network.opened.backend
    timed = getattr(backend, "timed", None)
    start = time.perf_counter()
    if timed is None:
        backend.run(contender.batch)
        return {"total": 1e3 * (time.perf_counter() - start)}
    _, times = timed(contender.batch)
    total = 1e3 * (time.perf_counter() - start)
    return {
        "total": total,
        "enqueue": times.enqueue_ms,
        "h2d": times.h2d_ms,
        "compute": times.compute_ms,
        "d2h": times.d2h_ms,
    }


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
        "notices": list(network.notices),
        "latency_ms": {stage: summarise(values) for stage, values in measured.items()},
        "tiles_per_second": tiles * request.iterations / total_s if total_s else None,
        "scan_s": summarise(scan_s) if scan_s else None,
        "cold_start": cold_starts(contender) if request.cold else None,
        "warm_up_ms": contender.warm_up_ms,
        "samples_ms": measured,
        "scan_samples_s": scan_s,
    }


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
