"""What this machine can run, what it lacks, and the command that mends it."""

import contextlib
import dataclasses
import importlib
import importlib.util
import itertools
import os
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from poan_runtime import extras
from poan_runtime.engines.backend import BACKENDS, EngineOptions, spoken
from poan_runtime.engines.nvidia import find_driver, fitting_extra
from poan_runtime.errors import PoanError
from poan_runtime.geometry import Geometry
from poan_runtime.models.find import shipped_models
from poan_runtime.models.manifest import read_manifest
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
class Choice:
    """One way to run a model on this CPU, and its time; ``auto`` takes none in eight bits."""

    file: str
    engine: str
    precision: str
    tile_ms: float


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
    beside: tuple[Choice, ...] = ()
    """Every engine, precision and file that could run instead, the fastest first."""


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
    options: EngineOptions,
    *,
    timed: bool = True,
    compared: bool = False,
    folders: Sequence[Path] | None = None,
    done: Callable[[str], None] = lambda name: None,
) -> Diagnosis:
    """Look at the machine and run a few tiles of each model; ``done`` hears of each.

    ``folders`` are those of the models, None for the shipped ones; ``compared`` times each of
    them in every engine and precision for CPUs.
    """
    driver = find_driver()
    runs = []
    for folder in shipped_models() if folders is None else folders:
        run = try_model(folder, options, timed=timed)
        if compared and run.error is None:
            run = dataclasses.replace(run, beside=tuple(choices(folder, options)))
        runs.append(run)
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
        there = not kind.needs or importlib.util.find_spec(kind.needs) is not None
        devices = kind.devices
        if there and kind.needs == "onnxruntime" and not _built_for_gpu(name):
            devices, there = ("cpu",), not on_gpu
        serves = f"{' and '.join(kind.kinds)} files on {' and '.join(devices)}"
        if there:
            yield Part(name=name, serves=serves, version=_version(kind.needs))
        elif on_gpu and not (driver and driver.gpus):
            yield Part(name=name, serves=serves, mend="needs an NVIDIA GPU and its driver")
        else:
            yield Part(name=name, serves=serves, mend=extras.command(extra))


def _built_for_gpu(name: str) -> bool:
    """Whether the installed build of ONNX Runtime has the provider of a backend on a GPU."""
    from poan_runtime.engines.onnxrt import CUDA, NAMED

    return NAMED.get(name, CUDA) in _providers()


def _providers() -> Sequence[str]:
    """What the installed build of ONNX Runtime can run on."""
    found: Sequence[str] = importlib.import_module("onnxruntime").get_available_providers()
    return found


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


def choices(folder: Path, options: EngineOptions) -> list[Choice]:
    """Each float32 and eight-bit ONNX file of a model in each engine for CPUs, timed."""
    installed = [
        name
        for name, kind in BACKENDS.items()
        if kind.automatic and "cpu" in kind.devices and importlib.util.find_spec(kind.needs)
    ]
    found = []
    for file in read_manifest(folder).files:
        for backend, precision in itertools.product(installed, ("fp32", "bf16")):
            if file.kind != "onnx" or file.precision not in ("fp32", "int8"):
                continue
            asked = dataclasses.replace(options, backend=backend, device="cpu", precision=precision)
            with contextlib.suppress(PoanError), load_network(folder / file.name, asked) as network:
                if precision == "bf16" and network.opened.precision != "bf16":
                    continue  # this CPU has none
                run = _timed(network, Run(model=folder.name))
                eight = "int8 and " if file.precision == "int8" else ""
                choice = Choice(
                    file=file.name,
                    engine=backend,
                    precision=eight + precision,
                    tile_ms=run.tile_ms or 0.0,
                )
                found.append(choice)
    return sorted(found, key=lambda choice: choice.tile_ms)


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
    engine = spoken(run.engine or "", run.device or "")
    lines = [f"runs    {run.model}: {engine}, {run.precision}"]
    if run.scan_s is not None:
        size = "x".join(map(str, SCAN))
        lines.append(
            f"        {run.tile_ms:.1f} ms a tile, {run.scan_s:.1f} s in the network for an output "
            f"of {size}"
        )
    for choice in run.beside:
        lines.append(
            f"        {choice.tile_ms:6.1f} ms a tile: {choice.engine}, {choice.precision}, "
            f"{choice.file}"
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
