"""`poan-run --verify MODEL`: run the stored test vectors here, and write the verdict.

The vectors are a few tiles and what PyTorch, with an eigen-decomposition in float64, answers to
them. An engine is proven on the machine that runs it: nothing is run in its place.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from poan_runtime.engines.backend import Backend
from poan_runtime.engines.precision import release
from poan_runtime.errors import PoanError
from poan_runtime.files import WholeFile, sha256_of
from poan_runtime.models.find import Model
from poan_runtime.models.manifest import (
    MANIFEST_NAME,
    Manifest,
    ModelFile,
    Parity,
    Precision,
)

HALF = "it rounds features of order 1 whatever the size of the output, so that errors count \
against the intensity unit or the largest output"
EIGHT = "8-bit convolutions are judged by PSNR when exported; this finds a broken engine"
TOLERANCES = {
    "fp32": ("relative_error", 1e-4, "float32 rounding through the network"),
    "fp16": ("unit_error", 1e-2, f"fp16 keeps 11 bits: {HALF}"),
    "bf16": ("unit_error", 8e-2, f"bf16 keeps 8 bits: {HALF}"),
    "int8": ("unit_error", 2e-1, EIGHT),
    "fp8": ("unit_error", 2e-1, EIGHT),
}
"""Metric, bound and its reason, where the exporter's gate states no bound for the case."""


UNIT = 1.0
"""Floor of `unit_error`: the intensity unit."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """Tiles (n, 1, t, t) and the reference answers (n, 1, s*t, s*t)."""

    name: str
    tiles: NDArray[np.float32]
    reference: NDArray[np.float32]


def read_vectors(manifest: Manifest, folder: Path) -> list[Case]:
    """The stored vectors of a manifest, checked against their hash and shapes."""
    if manifest.vectors is None:
        raise PoanError(f"{folder / MANIFEST_NAME}: it stores no test vectors; export it again")
    path = folder / manifest.vectors.name
    if not path.is_file():
        raise PoanError(f"{path}: listed in the manifest, but there is no such file")
    if (found := sha256_of(path)) != manifest.vectors.sha256:
        raise PoanError(
            f"{path}: expected sha256 {manifest.vectors.sha256[:12]}..., got {found[:12]}...; "
            "export it again"
        )
    tile, fine = manifest.tile, manifest.tile * manifest.scale
    cases = []
    with np.load(path, allow_pickle=False) as arrays:
        for key in sorted(arrays.files):
            if not key.startswith("input_"):
                continue
            name = key.removeprefix("input_")
            if f"output_{name}" not in arrays.files:
                raise PoanError(f"{path}: expected output_{name} beside {key}, got none")
            tiles, reference = arrays[key], arrays[f"output_{name}"]
            for array, side in ((tiles, tile), (reference, fine)):
                if array.shape != (len(tiles), 1, side, side):
                    expected = (len(tiles), 1, side, side)
                    raise PoanError(f"{path}: {name}: expected {expected}, got {array.shape}")
            cases.append(
                Case(
                    name=name,
                    tiles=tiles.astype(np.float32),
                    reference=reference.astype(np.float32),
                )
            )
    if not cases:
        raise PoanError(f"{path}: expected arrays input_<case>, got {arrays.files}")
    return cases


def relative_error(
    answer: NDArray[np.float32], reference: NDArray[np.float32], floor: float
) -> float | None:
    """The worst tile's max|y - ref| / max(max|ref|, floor); None if anything is not finite."""
    if not np.isfinite(answer).all():
        return None
    worst = 0.0
    for one, ref in zip(answer.astype(np.float64), reference.astype(np.float64), strict=True):
        worst = max(worst, float(np.abs(one - ref).max() / max(np.abs(ref).max(), floor)))
    return worst


def verify(model: Model, backend: Backend, precision: str | None = None) -> Parity:
    """The verdict on a model file, from its stored vectors.

    ``precision`` is what the backend computes in where that is not the file's own; beside
    convolutions in eight bits it changes nothing.
    """
    judged = model.file
    if precision is not None and judged.precision == "fp32":
        judged = dataclasses.replace(judged, precision=cast(Precision, precision))
    checks: list[dict[str, Any]] = []
    for case in read_vectors(model.manifest, model.path.parent):
        answer = _run(backend, case.tiles, model.manifest.batch.max)
        metric, tolerance, reason = _tolerance(model.manifest, judged, case.name)
        floor = UNIT if metric == "unit_error" else model.manifest.relative_error_floor
        value = relative_error(answer, case.reference, floor)
        checks.append(
            {
                "file": model.file.name,
                "stage": "output",
                "case": case.name,
                "metric": metric,
                "value": value,
                "tolerance": tolerance,
                "reason": reason,
            }
        )
    return _judged(checks)


def _judged(checks: Sequence[Mapping[str, Any]]) -> Parity:
    """The verdict that follows from checks; one without a tolerance is only reported."""
    good = all(
        check["tolerance"] is None
        or (check["value"] is not None and check["value"] <= check["tolerance"])
        for check in checks
    )
    return Parity(verdict="pass" if good else "fail", checks=tuple(checks))


def _beside(earlier: Sequence[Mapping[str, Any]], found: Parity) -> Parity:
    """What was found now, beside earlier checks of other things.

    The exporter's loss of PSNR and its look inside are not repeated by the stored vectors, and
    what failed there still does.
    """

    def of(check: Mapping[str, Any]) -> tuple[str, str, str]:
        return check["stage"], check["case"].replace(" ", "_"), check["metric"]

    again = {of(check) for check in found.checks}
    return _judged([*(c for c in earlier if of(c) not in again), *found.checks])


def _run(backend: Backend, tiles: NDArray[np.float32], most: int) -> NDArray[np.float32]:
    parts = [backend.run(tiles[at : at + most]) for at in range(0, len(tiles), most)]
    return np.concatenate(parts)


def _tolerance(manifest: Manifest, file: ModelFile, case: str) -> tuple[str, float, str]:
    """(metric, bound, reason) of the exporter's gate for this precision, else the default."""
    metric, bound, reason = TOLERANCES[file.precision]
    sources = {other.name for other in manifest.files if other.precision == file.precision}
    gates = [manifest.parity, *(other.parity for other in manifest.files if other.parity)]
    for check in (check for gate in gates for check in gate.checks):
        same = check["file"] in sources and check["case"].replace(" ", "_") == case
        at_output = check["stage"] == "output" and check["metric"] == metric
        if same and at_output and check["tolerance"] is not None:
            return metric, float(check["tolerance"]), str(check["reason"])
    return metric, bound, reason


def write_verdict(folder: Path, name: str, found: Parity) -> Parity:
    """Put what was found about the file ``name`` into the manifest, which changes in nothing else.

    The verdict that it states now: earlier checks of other things stay, and count.
    """
    path = folder / MANIFEST_NAME
    document: dict[str, Any] = json.loads(path.read_text("utf-8"))
    entry = next(entry for entry in document["files"] if entry["name"] == name)
    parity = _beside(entry.get("parity", {}).get("checks", []), found)
    entry["parity"] = _as_json(parity)
    _rewrite(path, document)
    return parity


def write_cpu_verdict(model: Model, precision: str, version: str, found: Parity) -> Parity:
    """The same for a CPU's reduced precision and this engine's version.

    Entries for other releases of the engine stay; a release that has none starts from the
    checks of one that has.
    """
    path = model.path.parent / MANIFEST_NAME
    document: dict[str, Any] = json.loads(path.read_text("utf-8"))
    entries = document["cpu_precisions"]
    mine = [e for e in entries if (e["file"], e["precision"]) == (model.file.name, precision)]
    here = [e for e in mine if release(e["version"]) == release(version)]
    like = (here or mine)[0]
    parity = _beside(like["parity"]["checks"], found)
    others = [entry for entry in entries if entry not in here]
    entry = {**like, "version": version, "parity": _as_json(parity)}
    document["cpu_precisions"] = [*others, entry]
    _rewrite(path, document)
    return parity


def _as_json(parity: Parity) -> dict[str, Any]:
    return {"verdict": parity.verdict, "checks": [dict(check) for check in parity.checks]}


def _rewrite(path: Path, document: Mapping[str, Any]) -> None:
    with WholeFile(path) as file:
        file.write((json.dumps(document, indent=1) + "\n").encode())


def check_lines(found: Parity) -> list[str]:
    """One line per case."""
    lines = []
    for check in found.checks:
        value = "not finite" if check["value"] is None else f"{check['value']:.2e}"
        metric = check["metric"].replace("_", " ")
        lines.append(f"{check['case']:24} {metric} {value} (at most {check['tolerance']:.0e})")
    return lines


def verdict_lines(model: Model, found: Parity, verdict: Parity) -> list[str]:
    """One line for the verdict, after one for each earlier check that fails it."""
    lines = [
        f"{check['case']:24} {check['metric']} {check['value']} at {check['stage']}, when exported"
        for check in verdict.checks
        if check not in found.checks and _judged([check]).verdict == "fail"
    ]
    return [*lines, f"{model.path}: parity {verdict.verdict}"]
