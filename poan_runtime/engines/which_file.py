"""Which file of a model runs on this machine: the plan where it can, else its ONNX file.

A plan that was not made for this machine is refused with what to do. Only where there is no GPU,
or no library for it, the ONNX file that the manifest names runs in its place, with a notice; and
not even then if the user asked for the GPU.
"""

import dataclasses
import importlib.util
from pathlib import Path

from poan_runtime import extras
from poan_runtime.engines.backend import EngineOptions
from poan_runtime.engines.nvidia import Gpu, device_index, device_kind, fitting_extra
from poan_runtime.engines.tensorrt.build.plan import EIGHT_BIT
from poan_runtime.engines.tensorrt.check import (
    check_gpu,
    check_version,
    engine_facts,
)
from poan_runtime.engines.tensorrt.library import MODULES, load_library
from poan_runtime.engines.verdicts import proven
from poan_runtime.errors import PoanError
from poan_runtime.models.find import Model, Trust, find_model
from poan_runtime.models.manifest import Manifest, OtherTile

PYCUDA = "tensorrt-pycuda"
"""Looks for its GPU itself, without cuda-python."""


def find_runnable(name: str | Path, options: EngineOptions, trust: Trust | None = None) -> Model:
    """The model file to run; ``name`` and ``trust`` as for `find_model`.

    For a folder on a GPU this is a plan that fits it and has been proven, else the fp16 ONNX
    file with device ``cuda``, else the fp32 one.
    """
    model = find_model(name, trust, "fp16" if device_kind(options.device) == "cuda" else "fp32")
    if model.file.kind != "plan":
        return model if Path(name).is_file() else _plan_beside(model, options)
    obstacle = None if options.backend == PYCUDA else _obstacle(model, options)
    if obstacle is None:
        return model
    if device_kind(options.device) == "cuda" or options.backend in MODULES:
        raise PoanError(f"{model.path}: {obstacle}")
    return _in_its_place(model, obstacle)


def plans_of_other_tiles(
    model: Model, options: EngineOptions
) -> tuple[tuple[Model, ...], tuple[str, ...]]:
    """The plans of a model's other tiles that run here as it does, and what stands in the way.

    None for an ONNX file: another tile is for what a plan saves. PoanError where a folder that
    the manifest lists is not there, or holds another network.
    """
    plans, notices = [], []
    for listed in model.manifest.other_tiles if model.file.kind == "plan" else ():
        folder = model.path.parent / listed.folder
        found = find_runnable(folder, options)
        _check_same_network(model.manifest, found.manifest, listed, folder)
        if found.file.kind == "plan":
            plans.append(found)
        notices += [f"{listed.folder}: {notice}" for notice in found.notices]
    return tuple(plans), tuple(notices)


SHARED = ("name", "scale", "grid", "network", "intensity", "degradation", "keep_measured", "air_k")
"""Fields of a manifest that every tile of an export has alike."""


def _check_same_network(first: Manifest, other: Manifest, listed: OtherTile, folder: Path) -> None:
    """All that the run reads of the first manifest must hold for the other, but for the tile."""
    if other.tile != listed.tile:
        raise PoanError(f"{folder}: expected an export for tile {listed.tile}, got {other.tile}")
    for what in SHARED:
        if getattr(first, what) != getattr(other, what):
            raise PoanError(f"{folder}: expected the network of {first.name}, its {what} differs")


def _obstacle(model: Model, options: EngineOptions) -> str | None:
    """Why a plan cannot run here although nothing is wrong with it; None if it can."""
    if options.device == "cpu":
        return "a plan needs a GPU, and the device asked for is the CPU"
    flavour = engine_facts(model).flavour
    if importlib.util.find_spec(MODULES[flavour]) is None:
        return extras.missing(MODULES[flavour], fitting_extra(flavour))
    check_version(model, load_library(flavour))
    if importlib.util.find_spec("cuda") is None:
        return extras.missing("cuda-python", fitting_extra(flavour))
    from poan_runtime.engines.tensorrt import cuda

    try:
        cuda.find_gpu(device_index(options.device))
    except cuda.NoGpuError as error:
        return str(error)
    return None


def _in_its_place(plan: Model, obstacle: str) -> Model:
    """The ONNX file beside a plan, with the notice that it runs in its place."""
    model = find_model(plan.path.parent)
    notice = f"{plan.path.name}: {obstacle}; running {model.path.name} in its place"
    return dataclasses.replace(model, notices=(notice, *model.notices))


def _plan_beside(model: Model, options: EngineOptions) -> Model:
    """A plan beside an ONNX file that runs here and has passed its gate, else the file itself.

    Where a GPU could run a plan that nobody compared with PyTorch yet, a notice says so. PoanError
    with each plan's reason where the backend that was named runs plans alone.
    """
    if options.device == "cpu" or options.backend not in ("auto", *MODULES):
        return model
    reasons: list[str] = []
    unproven: list[str] = []
    for file in model.manifest.files:
        if file.kind != "plan" or file.engine is None:
            continue
        plan = Model(manifest=model.manifest, file=file, path=model.path.with_name(file.name))
        reason = _unfit(plan, options)
        if reason is None:
            reason = _unproven(plan, options)
            if reason is None:
                return find_model(plan.path)  # checks the hash
            unproven.append(f"{file.name}: {reason}")
        reasons.append(f"{file.name}: {reason}")
    if options.backend in MODULES:
        raise PoanError(
            f"{model.path.parent}: it has no plan for {options.backend} that runs here "
            f"({'; '.join(reasons) or 'there is none'}); poan-build makes plans"
        )
    return dataclasses.replace(model, notices=(*unproven, *model.notices))


def _unfit(plan: Model, options: EngineOptions) -> str | None:
    """Why a plan is not taken on this machine, whatever is known of it; None if it can be.

    Never one in eight bits: what lies beyond its calibrated range is clipped, so who wants it
    names it.
    """
    if plan.file.precision in EIGHT_BIT:
        return f"in {plan.file.precision}, which runs only where the file itself is named"
    flavour = engine_facts(plan).flavour
    if options.backend not in ("auto", flavour):
        return f"built by {flavour}"
    try:
        obstacle = _obstacle(plan, options)
        if obstacle is None:
            check_gpu(plan, _gpu(options))
    except PoanError as error:
        return str(error)
    return obstacle


def _unproven(plan: Model, options: EngineOptions) -> str | None:
    """Why a plan that fits is not taken: it failed, or was not compared on such a GPU."""
    verdict = plan.file.parity.verdict if plan.file.parity else "pending"
    if verdict == "fail":
        return "its parity verdict is fail"
    known = any(found.file == plan.file.name for found in plan.manifest.device_verdicts)
    engine, gpu = engine_facts(plan), _gpu(options)
    if verdict == "pass" and (not known or proven(plan, engine.flavour, gpu.name, engine.version)):
        return None  # without any the verdict dates from before they named the GPU
    return f"not yet compared with PyTorch on {gpu.name}; poan-run --verify {plan.path} does it"


def _gpu(options: EngineOptions) -> Gpu:
    from poan_runtime.engines.tensorrt import cuda

    return cuda.find_gpu(device_index(options.device))
