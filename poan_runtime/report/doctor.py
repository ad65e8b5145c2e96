"""What this machine can run, what it lacks, and the command that mends it."""

import dataclasses
import importlib.util
import os
import platform
import sys
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from poan_runtime import extras
from poan_runtime.engines.backend import BACKENDS, EngineOptions
from poan_runtime.engines.nvidia import find_driver, fitting_extra
from poan_runtime.errors import PoanError
from poan_runtime.geometry import Geometry
from poan_runtime.models.find import shipped_models
from poan_runtime.network import Network, Settings, load_network
from poan_runtime.report.explain import time_tiles

SCAN = (240, 240, 96)
"""The output whose seconds are told."""
FLAGS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "bf16",
    "avx512_vnni": "VNNI (int8)",
    "avx_vnni": "AVX VNNI (int8)",
    "amx_bf16": "AMX bf16",
    "amx_int8": "AMX int8",
}
PACKAGES = {
    "pydicom": ("dicom", "DICOM in and out"),
    "openjpeg": ("dicom", "JPEG 2000 in DICOM"),
    "jpeg_ls": ("dicom", "JPEG-LS in DICOM"),
    "gdcm": ("dicom", "JPEG in DICOM"),
    "pynetdicom": ("node", "poan-node"),
}
"""Module -> (extra, what it serves)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A library: its version, or what mends its absence."""

    name: str
    serves: str
    version: str | None = None
    mend: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What ``auto`` does with a shipped model here; ``error`` where nothing runs it.

    ``scan_s`` is the seconds in the network for an output of `SCAN`.
    """

    model: str
    engine: str | None = None
    device: str | None = None
    precision: str | None = None
    reason: str | None = None
    notices: tuple[str, ...] = ()
    tile_ms: float | None = None
    scan_s: float | None = None
    error: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Everything that was found."""

    machine: dict[str, Any]
    gpus: tuple[str, ...]
    driver_cuda: str | None
    engines: tuple[Part, ...]
    packages: tuple[Part, ...]
    runs: tuple[Run, ...]

    @property
    def well(self) -> bool:
        """Whether every shipped model runs."""
        return bool(self.runs) and all(run.error is None for run in self.runs)


def examine(
    options: EngineOptions, *, timed: bool = True, done: Callable[[str], None] = lambda name: None
) -> Diagnosis:
    """Look at the machine and run a few tiles of each shipped model; ``done`` hears of each."""
    driver = find_driver()
    runs = []
    for folder in shipped_models():
        runs.append(try_model(folder, options, timed=timed))
        done(folder.name)
    return Diagnosis(
        machine=machine(),
        gpus=driver.gpus if driver else (),
        driver_cuda=f"{driver.cuda // 1000}.{driver.cuda % 1000 // 10}" if driver else None,
        engines=tuple(engines()),
        packages=tuple(packages()),
        runs=tuple(runs),
    )


def machine() -> dict[str, Any]:
    """Processor and memory."""
    found = _cpuinfo("flags")
    flags = found[0].split() if found else []
    names = _cpuinfo("model name")
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "cpu": names[0] if names else platform.processor() or "unknown",
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "features": [name for flag, name in FLAGS.items() if flag in flags],
        "memory_bytes": _memory_bytes(),
    }


def engines() -> Iterable[Part]:
    """Each engine that there could be; what needs a GPU is not missed where there is none."""
    driver = find_driver()
    for name, kind in BACKENDS.items():
        extra = fitting_extra(kind.extra) if kind.extra.startswith("tensorrt") else kind.extra
        on_gpu = "cpu" not in kind.devices
        serves = f"{' and '.join(kind.kinds)} files on {' and '.join(kind.devices)}"
        if not kind.needs or importlib.util.find_spec(kind.needs) is not None:
            yield Part(name=name, serves=serves, version=_version(kind.needs))
        elif on_gpu and not (driver and driver.gpus):
            yield Part(name=name, serves=serves, mend="needs an NVIDIA GPU and its driver")
        else:
            yield Part(name=name, serves=serves, mend=extras.command(extra))


def packages() -> Iterable[Part]:
    """Optional libraries that are no engines."""
    for module, (extra, serves) in PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            yield Part(name=module, serves=serves, mend=extras.command(extra))
        else:
            yield Part(name=module, serves=serves, version=_version(module))


def try_model(folder: Path, options: EngineOptions, *, timed: bool) -> Run:
    """Load a model as poan-run would, and time some tiles."""
    try:
        with load_network(folder, options) as network:
            opened = network.opened
            found = Run(
                model=folder.name,
                engine=f"{opened.name} {opened.version}",
                device=opened.device,
                precision=opened.precision or network.model.file.precision,
                reason=opened.reason,
                notices=network.notices,
            )
            return _timed(network, found) if timed else found
    except PoanError as error:
        return Run(model=folder.name, error=str(error))


def _timed(network: Network, found: Run) -> Run:
    scale = network.model.manifest.scale
    shape = (SCAN[0] // scale, SCAN[1] // scale, SCAN[2])
    grid = network.model.manifest.grid
    geometry = Geometry.derive(shape, np.eye(4), scale=scale, grid=grid, axis=2)
    settings = Settings()
    layout = network.layout(geometry, settings)
    batch = (layout.batch, 1, layout.tile, layout.tile)
    tile_s = time_tiles(network, settings, np.random.default_rng(0).random(batch, np.float32))
    scan_s = tile_s * layout.tiles_per_slice * geometry.slices
    return dataclasses.replace(found, tile_ms=1e3 * tile_s, scan_s=scan_s)


def as_json(found: Diagnosis) -> dict[str, Any]:
    """For other programs."""
    return {"well": found.well, "scan": list(SCAN), **dataclasses.asdict(found)}


def as_lines(found: Diagnosis) -> list[str]:
    """In words."""
    about = found.machine
    gib = about["memory_bytes"] / 2**30 if about["memory_bytes"] else 0
    lines = [
        f"system    {about['system']}, Python {about['python']}",
        f"CPU       {about['cpu']}, {about['cores']} cores, "
        f"{', '.join(about['features']) or 'no feature that we look for'}",
        f"memory    {gib:.1f} GiB" if gib else "memory    not known",
        f"GPU       {', '.join(found.gpus) or 'none that a driver shows'}"
        + (f", driver for CUDA {found.driver_cuda}" if found.driver_cuda else ""),
        "",
        *(_part_line(part) for part in (*found.engines, *found.packages)),
        "",
    ]
    for run in found.runs:
        lines += _run_lines(run)
    return lines


def _part_line(part: Part) -> str:
    mark = "ok     " if part.mend is None else "missing"
    return f"{mark} {part.name:21} {part.version or '':12} {part.serves}" + (
        f"; {part.mend}" if part.mend else ""
    )


def _run_lines(run: Run) -> list[str]:
    if run.error is not None:
        return [f"FAILS   {run.model}: {run.error}"]
    lines = [f"runs    {run.model}: {run.engine} on {run.device}, {run.precision}: {run.reason}"]
    if run.scan_s is not None:
        size = "x".join(map(str, SCAN))
        lines.append(
            f"        {run.tile_ms:.1f} ms a tile, {run.scan_s:.1f} s in the network for an output "
            f"of {size}"
        )
    return lines + [f"        {notice}" for notice in run.notices]


def _cpuinfo(key: str) -> list[str]:
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return []
    return [x.split(":", 1)[1].strip() for x in text.splitlines() if x.startswith(key)]


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return None


def _version(module: str) -> str | None:
    """Of the distribution that brings a module; None where it says none."""
    named = metadata.packages_distributions().get(module, [module])
    try:
        return metadata.version(named[0])
    except metadata.PackageNotFoundError:
        return None
