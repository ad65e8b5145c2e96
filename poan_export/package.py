"""Write the folder of an export: model files, test vectors, manifest; all of them or none."""

import contextlib
import errno
import glob
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from poan_export.gate.parity import Gate
from poan_export.trace.stages import OUTPUT
from poan_runtime.errors import PoanError
from poan_runtime.files import sha256_of, working_folder
from poan_runtime.models.manifest import (
    MANIFEST_NAME,
    Manifest,
    ModelFile,
    Parity,
    Precision,
    Vectors,
    parse_manifest,
    read_manifest,
)

MOST_ATTEMPTS = 8
EARLIER = ".poan-earlier"
VECTORS_NAME = "vectors.npz"
VECTOR_CASES = ("real 0", "constant", "one bright voxel")
"""Tiles kept beside the models; the others are made from the same network by the gate alone."""


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which takes the name ``out`` when the block ends without an error.

    An earlier export there is replaced; anything else of that name is refused (PoanError),
    and so is what the operating system refuses below ``out``.
    """
    _settle_earlier(out)
    if out.exists() and not (out / MANIFEST_NAME).is_file():
        raise PoanError(f"{out}: exists and is no poan export (no {MANIFEST_NAME}); not replaced")
    hidden = f".{out.name}."
    try:
        with working_folder(out.parent, hidden, ".poan-export") as work:
            folder = work / "new"
            folder.mkdir()
            yield folder
            _flush(folder)
            _take_place(folder, out, work)
    except OSError as error:
        elsewhere = error.filename is not None and hidden not in str(error.filename)
        if elsewhere or error.strerror is None:
            raise
        raise PoanError(f"{out}: cannot be written: {error.strerror}") from None


def earlier_export(out: Path) -> str | None:
    """The name of the model whose export has the name ``out``, None where there is none."""
    if not (out / MANIFEST_NAME).is_file():
        return None
    with contextlib.suppress(PoanError):
        return read_manifest(out).name
    return "an unknown model"


def _take_place(folder: Path, out: Path, work: Path) -> None:
    """Rename ``folder`` to ``out``; of two exports at once the last one has the name, whole."""
    for attempt in range(MOST_ATTEMPTS):
        old = work.with_name(f"{work.name}.{attempt}{EARLIER}")
        if out.exists():
            with contextlib.suppress(FileNotFoundError):
                out.rename(old)
        try:
            folder.rename(out)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                with contextlib.suppress(OSError):
                    old.rename(out)
                raise
        else:
            return _settle_earlier(out)
    raise PoanError(f"{out}: other exports keep writing it")


def _settle_earlier(out: Path) -> None:
    """Give the name back to an export that a process put aside and never replaced; or remove it."""
    for old in sorted(out.parent.glob(f".{glob.escape(out.name)}.*{EARLIER}")):
        with contextlib.suppress(OSError):
            if not out.exists():
                old.rename(out)
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)


def _flush(folder: Path) -> None:
    for path in filter(Path.is_file, folder.rglob("*")):
        with path.open("rb") as file:
            os.fsync(file.fileno())


def write_model(
    folder: Path,
    name: str,
    model: onnx.ModelProto,
    precision: Precision,
    islands: Sequence[str] = (),
    parity: Parity | None = None,
) -> ModelFile:
    """Write one ONNX file; its entry for the manifest."""
    (folder / name).write_bytes(model.SerializeToString(deterministic=True))
    return ModelFile(
        name=name,
        kind="onnx",
        precision=precision,
        islands=tuple(islands),
        sha256=sha256_of(folder / name),
        parity=parity,
    )


def is_stored(stage: str) -> bool:
    """Whether a stage is stored for engines to be judged by.

    >>> is_stored("body.8.z"), is_stored("body.8.attention"), is_stored("body.8.attention.point")
    (True, True, False)
    """
    return stage.endswith((".z", ".attention"))


def write_vectors(folder: Path, gate: Gate) -> Vectors:
    """Write the stored test vectors as float32: inputs, and what the float64 reference has at the
    output, at each z and behind each attention."""
    arrays: dict[str, Any] = {}
    for i, case in gate.names():
        if case in VECTOR_CASES:
            key = case.replace(" ", "_")
            arrays[f"input_{key}"] = gate.cases.items[i].lr[None].astype(np.float32)
            arrays[f"output_{key}"] = gate.reference[OUTPUT][i : i + 1].astype(np.float32)
            for stage in filter(is_stored, gate.reference):
                stored = gate.reference[stage][i : i + 1].astype(np.float32)
                arrays[f"stage_{key}:{stage}"] = stored
    np.savez_compressed(folder / VECTORS_NAME, **arrays)
    return Vectors(name=VECTORS_NAME, sha256=sha256_of(folder / VECTORS_NAME))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Check that the runtime reads the manifest, then write it."""
    text = manifest.text()
    parse_manifest(json.loads(text))
    (folder / MANIFEST_NAME).write_text(text, encoding="utf-8")


def created_by() -> dict[str, str]:
    """Versions of the programs that made the files."""
    try:
        own = version("poan")
    except PackageNotFoundError:
        own = "not installed"
    return {"poan": own, "torch": str(torch.__version__), "onnx": onnx.__version__}
