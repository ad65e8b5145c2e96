"""`poan-run --verify MODEL`: run the stored test vectors here, and write the verdict.

The vectors are a few tiles and what PyTorch, with an eigen-decomposition in float64, answers to
them. An engine is proven on the machine that runs it: nothing is run in its place.
"""

import contextlib
import dataclasses
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from poan_runtime.engines.backend import Backend, OpenedBackend
from poan_runtime.engines.precision import release
from poan_runtime.errors import PoanError
from poan_runtime.files import WholeFile, sha256_of
from poan_runtime.models.find import Model
from poan_runtime.models.manifest import (
    MANIFEST_NAME,
    Check,
    DeviceVerdict,
    Manifest,
    ModelFile,
    Parity,
    Precision,
)
from poan_runtime.models.verdicts_here import keep_verdicts, manifest_here

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


DAMAGE: tuple[type[Exception], ...] = (zipfile.BadZipFile, zlib.error, struct.error, EOFError)
DAMAGE += (tokenize.TokenError, SyntaxError, OSError, RuntimeError, MemoryError)
DAMAGE += (ValueError, KeyError, TypeError, AttributeError)
"""What zipfile and numpy raise on a damaged .npz file."""
TINY = float(np.finfo(np.float32).tiny)
UNIT = 1.0
"""Floor of `unit_error`: the intensity unit."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """Tiles (n, 1, t, t) and the reference answers (n, 1, s*t, s*t)."""

    name: str
    tiles: NDArray[np.float32]
    reference: NDArray[np.float32]
    stages: Mapping[str, NDArray[np.float32]] = dataclasses.field(default_factory=dict)
    """Inner tensors by stage, where they were stored: z and the attention."""


def read_vectors(manifest: Manifest, folder: Path) -> list[Case]:
    """The stored vectors of a manifest, checked against their hash and shapes."""
    if manifest.vectors is None:
        raise PoanError(f"{folder / MANIFEST_NAME}: it stores no test vectors; export it again")
    path = folder / manifest.vectors.name
    if not os.path.isfile(path):  # false also for a name that no file system takes
        raise PoanError(f"{path}: listed in the manifest, but there is no such file")
    if (found := sha256_of(path)) != manifest.vectors.sha256:
        raise PoanError(
            f"{path}: expected sha256 {manifest.vectors.sha256[:12]}..., got {found[:12]}...; "
            "export it again"
        )
    tile, fine = manifest.tile, manifest.tile * manifest.scale
    cases = []
    # the file is opened here: np.load leaves it open where the zip in it is damaged
    with (
        _undamaged(path),
        path.open("rb") as file,
        np.load(file, allow_pickle=False) as arrays,
    ):
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
                    stages=_stages_of(arrays, name),
                )
            )
    if not cases:
        raise PoanError(f"{path}: expected arrays input_<case>, got {arrays.files}")
    return cases


@contextlib.contextmanager
def _undamaged(path: Path) -> Iterator[None]:
    """Turn what zip and numpy say of a damaged .npz file into one line."""
    try:
        yield
    except PoanError:
        raise
    except DAMAGE as error:
        raise PoanError(f"{path}: damaged test vectors ({error}); export it again") from None


def _stages_of(arrays: Any, case: str) -> dict[str, NDArray[np.float32]]:
    """Arrays ``stage_<case>:<stage>``."""
    start = f"stage_{case}:"
    names = [key for key in arrays.files if key.startswith(start)]
    return {key.removeprefix(start): arrays[key].astype(np.float32) for key in names}


def relative_error(answer: NDArray[Any], reference: NDArray[Any], floor: float) -> float:
    """max|y - ref| / max(max|ref|, floor) over one tile; infinite where y is not finite.

    >>> relative_error(np.array([1.0, 2.5]), np.array([1.0, 2.0]), 1e-6)
    0.25
    >>> relative_error(np.array([np.nan]), np.array([1.0]), 1e-6)
    inf
    """
    if not np.isfinite(answer).all():
        return math.inf
    largest = max(float(np.abs(reference).max()), floor)
    return float(np.abs(np.subtract(answer, reference, dtype=np.float64)).max()) / largest


def worst_error(
    answers: NDArray[np.float32], references: NDArray[np.float32], floor: float
) -> float | None:
    """The largest `relative_error` of tiles (n, 1, h, w); None where it is not finite."""
    pairs = zip(answers, references, strict=True)
    worst = max(relative_error(answer, reference, floor) for answer, reference in pairs)
    return worst if math.isfinite(worst) else None


Inside = Callable[[Mapping[str, NDArray[np.float32]], Sequence[str]], Mapping[str, Any]]
"""(tiles by case, stages) to answers by case and stage."""


def look(model: Model, inside: Inside | None) -> list[Check]:
    """What `verify` takes of a look into an engine of its own; nothing where none looks.

    Done before the engine under judgement is opened: a card of 8 GB has no room for both.
    """
    if inside is None:
        return []
    cases = read_vectors(model.manifest, model.path.parent)
    return stage_checks(model, model.file.precision, cases, inside)


def verify(
    model: Model, backend: Backend, precision: str | None = None, looked: Sequence[Check] = ()
) -> Parity:
    """The verdict on a model file, from its stored vectors and what `look` found inside.

    ``precision`` is what the backend computes in where that is not the file's own; beside
    convolutions in eight bits it changes nothing.
    """
    judged = model.file
    if precision is not None and judged.precision == "fp32":
        judged = dataclasses.replace(judged, precision=cast(Precision, precision))
    checks = [*looked]
    batch = production_batch(model) if backend.fills_batches else 1
    for case in read_vectors(model.manifest, model.path.parent):
        answer, spread = run_case(backend, case.tiles, batch)
        if batch > 1:
            checks.append(row_check(model.file.name, case.name, spread))
        metric, tolerance, reason = _tolerance(model.manifest, judged, case.name)
        floor = UNIT if metric == "unit_error" else model.manifest.relative_error_floor
        value = worst_error(answer, case.reference, floor)
        checks.append(
            Check(
                file=model.file.name,
                stage="output",
                case=case.name,
                metric=metric,
                value=value,
                tolerance=tolerance,
                reason=reason,
            )
        )
    return Parity.of(checks)


STAGE_BOUNDS = {"fp32": 1e-3, "fp16": 5e-2, "bf16": 2e-1, "int8": 5e-1, "fp8": 5e-1}
"""Relative error of a stage's norm: far above rounding, far below a root that went wrong."""


def stage_checks(
    model: Model, precision: str, cases: Sequence[Case], inside: Inside
) -> list[Check]:
    """z and the attention of each case, inside the engine, against PyTorch in float64."""
    stages = sorted({stage for case in cases for stage in case.stages})
    if not stages:
        return []
    found = inside({case.name: case.tiles for case in cases if case.stages}, stages)
    return [
        Check(
            file=model.file.name,
            stage=stage,
            case=case.name,
            metric="relative_norm_error",
            value=norm_error(found[case.name][stage], reference),
            tolerance=STAGE_BOUNDS[precision],
            reason="a wrong matrix root does not show at the output",
        )
        for case in cases
        for stage, reference in case.stages.items()
    ]


def norm_error(answer: NDArray[Any], reference: NDArray[Any]) -> float | None:
    """||y - ref|| / ||ref|| over all tiles; None where y is not finite.

    >>> norm_error(np.array([3.0, 4.5]), np.array([3.0, 4.0]))
    0.1
    """
    if not np.isfinite(answer).all():
        return None
    difference = np.subtract(answer, reference, dtype=np.float64)
    scale = max(float(np.linalg.norm(reference.astype(np.float64))), TINY)
    return float(np.linalg.norm(difference)) / scale


def _beside(earlier: Sequence[Check], found: Parity) -> Parity:
    """What was found now, beside earlier checks of other things.

    The exporter's loss of PSNR and its look inside are not repeated by the stored vectors, and
    what failed there still does.
    """

    def of(check: Check) -> tuple[str, str, str]:
        return check.stage, check.case.replace(" ", "_"), check.metric

    again = {of(check) for check in found.checks}
    return Parity.of([*(c for c in earlier if of(c) not in again), *found.checks])


def production_batch(model: Model) -> int:
    """Tiles that run at once in production: kernels are chosen for it, so it is what is judged."""
    engine = model.file.engine
    return engine.profile.opt if engine is not None else model.manifest.batch.opt


def run_case(
    backend: Backend, tiles: NDArray[np.float32], batch: int
) -> tuple[NDArray[np.float32], float | None]:
    """Answers to tiles (n, 1, t, t), and the largest difference within a batch of equal tiles.

    Each tile fills a whole batch. Of its rows the one counts that is farthest from the first;
    None where a row is not finite.
    """
    answers, spread = [], 0.0
    for tile in tiles:
        rows = backend.run(np.repeat(tile[None], batch, axis=0))
        if not np.isfinite(rows).all():
            return np.full((len(tiles), *rows.shape[1:]), np.nan, np.float32), None
        apart = np.abs(rows - rows[0]).reshape(batch, -1).max(axis=1)
        answers.append(rows[np.argmax(apart)])
        spread = max(spread, float(apart.max()))
    return np.stack(answers), spread


def row_check(file: str, case: str, spread: float | None) -> Check:
    """Equal tiles in one batch have one answer: anything else is a wrong index or a race."""
    return Check(
        file=file,
        stage="output",
        case=case,
        metric="row_difference",
        value=spread,
        tolerance=0.0,
        reason="the rows of a batch are computed alike",
    )


def _tolerance(manifest: Manifest, file: ModelFile, case: str) -> tuple[str, float, str]:
    """(metric, bound, reason) of the exporter's gate for this precision, else the default."""
    metric, bound, reason = TOLERANCES[file.precision]
    sources = {other.name for other in manifest.files if other.precision == file.precision}
    gates = [manifest.parity, *(other.parity for other in manifest.files if other.parity)]
    for check in (check for gate in gates for check in gate.checks):
        same = check.file in sources and check.case.replace(" ", "_") == case
        at_output = check.stage == "output" and check.metric == metric
        if same and at_output and check.tolerance is not None:
            return metric, check.tolerance, check.reason
    return metric, bound, reason


def write_verdict(folder: Path, name: str, found: Parity) -> Parity:
    """Put what was found about the file ``name`` into the manifest, which changes in nothing else.

    The verdict that it states now: earlier checks of other things stay, and count.
    """
    manifest = manifest_here(folder)
    file = next(file for file in manifest.files if file.name == name)
    parity = _beside(file.parity.checks if file.parity else (), found)
    keep_verdicts(folder, manifest.with_file(dataclasses.replace(file, parity=parity)))
    return parity


def write_cpu_verdict(model: Model, precision: str, version: str, found: Parity) -> Parity:
    """The same for a CPU's reduced precision and this engine's version.

    Entries for other releases of the engine stay; a release that has none starts from the
    checks of one that has.
    """
    folder = model.path.parent
    manifest = manifest_here(folder)
    entries = manifest.cpu_precisions
    mine = [e for e in entries if (e.file, e.precision) == (model.file.name, precision)]
    here = [e for e in mine if release(e.version) == release(version)]
    like = (here or mine)[0]
    parity = _beside(like.parity.checks, found)
    others = (entry for entry in entries if entry not in here)
    entry = dataclasses.replace(like, version=version, parity=parity)
    keep_verdicts(folder, dataclasses.replace(manifest, cpu_precisions=(*others, entry)))
    return parity


def write_gpu_verdict(model: Model, opened: OpenedBackend, found: Parity) -> Parity:
    """The same for this GPU and this release of the engine, beside those for others.

    A plan has the verdict as its own too: it runs nowhere but on GPUs.
    """
    folder = model.path.parent
    if model.file.engine is not None:
        found = write_verdict(folder, model.file.name, found)
    manifest = manifest_here(folder)
    entry = DeviceVerdict(
        file=model.file.name,
        engine=opened.name,
        device=device_name(opened.device),
        version=opened.version,
        parity=found,
    )
    others = [one for one in manifest.device_verdicts if verdict_key(one) != verdict_key(entry)]
    keep_verdicts(folder, dataclasses.replace(manifest, device_verdicts=(*others, entry)))
    return found


def verdict_key(found: DeviceVerdict) -> tuple[str, ...]:
    """What a verdict on a GPU is about."""
    return found.file, found.engine, found.device, release(found.version)


def device_name(device: str) -> str:
    """
    >>> device_name("cuda:0 (NVIDIA A100)")
    'NVIDIA A100'
    """
    return device.partition(" (")[2].removesuffix(")")


def replace_manifest(folder: Path, manifest: Manifest) -> None:
    """Put a manifest in the place of the one in ``folder``, whole."""
    with WholeFile(folder / MANIFEST_NAME) as file:
        file.write(manifest.text().encode())


def check_lines(found: Parity) -> list[str]:
    """One line per case."""
    lines = []
    for check in found.checks:
        value = "not finite" if check.value is None else f"{check.value:.2e}"
        metric = check.metric.replace("_", " ")
        lines.append(f"{check.case:24} {metric} {value} (at most {check.tolerance:.0e})")
    return lines


def verdict_lines(model: Model, found: Parity, verdict: Parity) -> list[str]:
    """One line for the verdict, after one for each earlier check that fails it."""
    lines = [
        f"{check.case:24} {check.metric} {check.value} at {check.stage}, when exported"
        for check in verdict.checks
        if check not in found.checks and not check.passed
    ]
    return [*lines, f"{model.path}: parity {verdict.verdict}"]
