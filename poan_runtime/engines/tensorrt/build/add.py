"""Plans for this machine, added to the folder of a model that was exported elsewhere."""

import dataclasses
from pathlib import Path

from poan_runtime.engines.tensorrt.build.judge import gate_plans
from poan_runtime.engines.tensorrt.build.plan import (
    BuiltPlan,
    build_plan,
    choose_flavour,
    describe,
    gpu_here,
    order_from,
    plan_name,
    source_of_plans,
    targets,
)
from poan_runtime.engines.tensorrt.library import Flavour
from poan_runtime.engines.verify import replace_manifest
from poan_runtime.errors import PoanError, Say
from poan_runtime.models.find import find_model
from poan_runtime.models.manifest import Manifest, ModelFile, read_manifest


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What ``poan-build`` was asked for; None leaves the choice."""

    folder: Path
    engine: str = "auto"
    source: str | None = None
    sm: str | None = None
    batch: int | None = None


def folders_of(folder: Path) -> list[Path]:
    """The folder of an export, then those of its other tiles."""
    return [folder, *(folder / other.folder for other in read_manifest(folder).other_tiles)]


def add_plans(request: PlanRequest, say: Say) -> list[str]:
    """Build, list and judge plans, for every tile of the export; names of those that fail.

    The manifest vouches for a plan only once it is whole, and the ONNX file that it comes from is
    checked against its own hash first.
    """
    if not request.folder.is_dir():
        raise PoanError(
            f"{request.folder}: expected a folder that poan-export wrote, or a copy of a shipped "
            f"model's, got {'a file' if request.folder.exists() else 'nothing of that name'}"
        )
    flavour, why = choose_flavour(request.engine)
    if flavour is None:
        raise PoanError(why)
    if flavour == "tensorrt" and request.sm is not None:
        raise PoanError("--sm is for --engine tensorrt-rtx; tensorrt builds for the GPU at hand")
    say(f"engine: {flavour}: {why}")
    each = [dataclasses.replace(request, folder=folder) for folder in folders_of(request.folder)]
    return [name for one in each for name in _add_to_one(one, flavour, say)]


def _add_to_one(request: PlanRequest, flavour: Flavour, say: Say) -> list[str]:
    manifest = read_manifest(request.folder)
    source = _source(request, manifest)
    batch = request.batch or manifest.batch.opt
    groups = targets(source.precision, request.sm) if flavour == "tensorrt-rtx" else [()]
    names = []
    for sms in groups:
        gpu = gpu_here()[1] if flavour == "tensorrt" else ""
        name = plan_name(sms, source.precision, gpu)
        built = build_plan(order_from(request.folder, source, name, flavour, sms, batch))
        say(describe(name, built.compute_capabilities, built.report))
        replace_manifest(request.folder, listed(read_manifest(request.folder), built))
        names.append(name)
    return gate_plans(request.folder, names, say)


def _source(request: PlanRequest, manifest: Manifest) -> ModelFile:
    """The ONNX file to build from, whose hash is the manifest's."""
    name = request.source or source_of_plans(manifest.files).name
    found = find_model(request.folder / name).file
    if found.kind != "onnx":
        raise PoanError(f"{request.folder / name}: expected an ONNX file to build from, got a plan")
    return found


def listed(manifest: Manifest, built: BuiltPlan) -> Manifest:
    """The manifest with the plan, which takes the place of one of the same name.

    What was known about that one on any GPU is forgotten.
    """
    entry = built.manifest_entry()
    verdicts = tuple(v for v in manifest.device_verdicts if v.file != entry.name)
    manifest = dataclasses.replace(manifest, device_verdicts=verdicts)
    if manifest.file(entry.name) is not None:
        return manifest.with_file(entry)
    return dataclasses.replace(manifest, files=(*manifest.files, entry))
