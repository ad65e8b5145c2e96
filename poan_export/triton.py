"""An export becomes a version of a model in a Triton model repository.

``REPO/NAME/config.pbtxt`` describes all versions, ``REPO/NAME/1/`` holds the first one: the model
file, and the manifest that vouches for it. The manifest is a parameter of the configuration as
well, so that `poan-run kserve://...` needs nothing but the address.
"""

import argparse
import dataclasses
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Literal

from poan_export import triton_model
from poan_export.triton_model import NAMES, model_in
from poan_runtime.commands.say import write_line
from poan_runtime.engines.kserve.backend import FILE_PARAMETER, MANIFEST_PARAMETER
from poan_runtime.errors import PoanError
from poan_runtime.files import WholeFile
from poan_runtime.models.find import Model, find_model
from poan_runtime.models.manifest import MANIFEST_NAME, BatchRange

Runner = Literal["triton", "python"]
"""Triton's own backend for the file, or its Python backend that calls poan's runtime."""
QUEUE_US = 500
"""How long a batch may wait for others to join it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Serving:
    """How Triton runs a model: by which backend, and ``instances`` of it side by side."""

    runner: Runner = "triton"
    instances: int = 1


def add_version(
    export: Path, repository: Path, serving: Serving | None = None, version: int | None = None
) -> Path:
    """Add a model file, or the one of an export's folder, to a repository; the version's folder.

    Without ``version`` it is the one after the last. The configuration is written anew for all
    versions, once the new one is complete. Raises PoanError where the export is not what its
    manifest lists, or where the versions there are of another kind or size.
    """
    model = find_model(export)
    folder = repository / model.manifest.name
    versions = _versions(folder)
    number = version or max(versions, default=0) + 1
    if number in versions:
        raise PoanError(f"{folder}: version {number} exists; leave it out to add the next one")
    serving = serving or Serving()
    _check_alike(folder, [*versions.values(), model])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        new = _fill(folder, model, serving)
        served = _versions_with(versions, number, model)
        _write(folder / "config.pbtxt", config(served, serving))
        new.rename(folder / str(number))
    except OSError as error:
        raise PoanError(f"{folder}: cannot be written: {error.strerror}") from None
    return folder / str(number)


def _versions_with(versions: dict[int, Model], number: int, model: Model) -> dict[int, Model]:
    return dict(sorted({**versions, number: model}.items()))


def config(versions: dict[int, Model], serving: Serving) -> str:
    """``config.pbtxt`` of a model whose versions are all alike in ports, tile and scale."""
    model = versions[max(versions)]
    manifest, batch = model.manifest, batches(model)
    tile, fine = manifest.tile, manifest.tile * manifest.scale
    leading = "" if batch.dynamic else f"{batch.only}, "
    lines = [
        f"name: {quoted(manifest.name)}",
        *_runs(model, serving),
        f"max_batch_size: {batch.most if batch.dynamic else 0}",
        _port("input", manifest.input_name, f"{leading}1, {tile}, {tile}"),
        _port("output", manifest.output_name, f"{leading}1, {fine}, {fine}"),
        f"instance_group [ {{ count: {serving.instances} kind: {_kind(model, serving)} }} ]",
        "version_policy: { all { } }",
    ]
    if batch.dynamic:
        lines.append(
            f"dynamic_batching {{ preferred_batch_size: [ {batch.best} ] "
            f"max_queue_delay_microseconds: {QUEUE_US} }}"
        )
    lines.append(_warm_up(manifest.input_name, f"{leading}1, {tile}, {tile}", batch))
    for number, served in versions.items():
        text = json.dumps(_document(served))
        lines.append(_parameter(f"{MANIFEST_PARAMETER}.{number}", text))
        lines.append(_parameter(f"{FILE_PARAMETER}.{number}", served.file.name))
    return "\n".join(lines) + "\n"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batches:
    """What batches a file takes; ``only`` is the size of one that takes no other, or -1."""

    dynamic: bool
    best: int
    most: int
    only: int


def batches(model: Model) -> Batches:
    """An ONNX file takes any batch, a plan what its profile says.

    Triton may send a single tile to a model with ``max_batch_size``; a plan that takes no batch
    of one gets no batcher, and the client sends full, padded batches.
    """
    engine = model.file.engine
    takes: BatchRange = model.manifest.batch if engine is None else engine.profile
    return Batches(
        dynamic=engine is None or (takes.min == 1 and takes.max > 1),
        best=takes.opt,
        most=takes.max,
        only=takes.max if takes.min == takes.max else -1,
    )


def quoted(text: str) -> str:
    """A string of protobuf's text format; ``text`` is ASCII.

    >>> print(quoted('{"a": "b"}'))
    "{\\"a\\": \\"b\\"}"
    """
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _runs(model: Model, serving: Serving) -> list[str]:
    """Which backend runs it; TensorRT's is named by platform."""
    if serving.runner == "python":
        return ['backend: "python"']
    if model.file.kind == "plan":
        return ['platform: "tensorrt_plan"', f"default_model_filename: {quoted(NAMES['plan'])}"]
    return ['backend: "onnxruntime"', f"default_model_filename: {quoted(NAMES['onnx'])}"]


def _kind(model: Model, serving: Serving) -> str:
    if serving.runner == "python":
        return "KIND_CPU"  # of the backend; the engine in it finds a GPU by itself
    return "KIND_GPU" if model.file.kind == "plan" else "KIND_AUTO"


def _port(kind: str, name: str, dims: str) -> str:
    return f"{kind} [ {{ name: {quoted(name)} data_type: TYPE_FP32 dims: [ {dims} ] }} ]"


def _warm_up(name: str, dims: str, batch: Batches) -> str:
    """A batch of zeros before the first request; one of unknown size cannot be made."""
    size = batch.best if batch.dynamic else 1
    dims = dims.replace("-1, ", f"{batch.best}, ")
    return (
        f'model_warmup [ {{ name: "zeros" batch_size: {size} inputs {{ key: {quoted(name)} '
        f"value {{ data_type: TYPE_FP32 dims: [ {dims} ] zero_data: true }} }} }} ]"
    )


def _parameter(key: str, value: str) -> str:
    return f"parameters {{ key: {quoted(key)} value {{ string_value: {quoted(value)} }} }}"


def _document(model: Model) -> object:
    """The manifest as it stands beside the file."""
    document: object = json.loads((_home(model) / MANIFEST_NAME).read_text("utf-8"))
    return document


def _home(model: Model) -> Path:
    return model.path.parent


def _versions(folder: Path) -> dict[int, Model]:
    """The versions that a model's folder holds. What is no folder with a number is not ours."""
    numbers = [path for path in folder.glob("*/") if path.name.isdecimal()]
    return {int(path.name): model_in(path) for path in sorted(numbers)}


def _check_alike(folder: Path, models: list[Model]) -> None:
    """One configuration serves all versions."""

    def facts(model: Model) -> tuple[object, ...]:
        manifest = model.manifest
        ports = manifest.input_name, manifest.output_name
        return model.file.kind, batches(model), manifest.tile, manifest.scale, *ports

    if len({facts(model) for model in models}) > 1:
        raise PoanError(
            f"{folder}: its versions differ from this one in kind of file, batch, tile, scale or "
            "ports; use another repository"
        )


def _fill(folder: Path, model: Model, serving: Serving) -> Path:
    """The files of a version, in a folder without a number, which Triton does not look into."""
    new = Path(tempfile.mkdtemp(dir=folder, prefix=".new-"))
    new.chmod(0o755)
    shutil.copyfile(model.path, new / NAMES[model.file.kind])
    shutil.copyfile(_home(model) / MANIFEST_NAME, new / MANIFEST_NAME)
    if serving.runner == "python":
        shutil.copyfile(str(triton_model.__file__), new / "model.py")
    for path in new.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return new


def _write(path: Path, text: str) -> None:
    with WholeFile(path) as file:
        file.write(text.encode("ascii"))


def add_triton_options(p: argparse.ArgumentParser) -> None:
    """Those of poan-export."""
    g = p.add_argument_group("Triton")
    g.add_argument("--triton", type=Path, metavar="REPO", help="add a version to this repository")
    g.add_argument("--export", type=Path, help="what to add: an earlier export, or a file in it")
    g.add_argument(
        "--triton-python",
        action="store_true",
        help="run it by poan's own engines in Triton's Python backend",
    )
    g.add_argument("--instances", type=int, default=1, help="side by side on the server")


def serve(args: argparse.Namespace, export: Path) -> None:
    """Do what `add_triton_options` asked for."""
    runner: Runner = "python" if args.triton_python else "triton"
    if args.instances < 1:
        raise PoanError(f"--instances: expected at least 1, got {args.instances}")
    folder = add_version(export, args.triton, Serving(runner=runner, instances=args.instances))
    write_line(str(folder), sys.stdout)
