"""The gate: does the exported model still answer as PyTorch with eigh does?

Three engines see the same tiles: PyTorch with eigh in float64 (the reference), PyTorch in
float32, and the exported graph. They are compared at every stage, not at the output alone: behind
a softmax gate of about 1 / C the output hides the square root (a root 38 % wrong moved it by
5e-8).
"""

import copy
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from poan_export.gate.real_tiles import Cases, chunks
from poan_export.trace.onnx_export import INPUT_NAME, OUTPUT_NAME
from poan_export.trace.stages import OUTPUT, Tapped, kind_of, pools_of, taps_of
from poan_runtime.engines.verify import relative_error
from poan_runtime.models.manifest import Check
from poan_train.metrics import psnr, ssim
from poan_train.networks.covariance import CovariancePooling, EighPower

Array = NDArray[Any]
Taps = Mapping[str, Array]
"""Name of a stage -> its tensor (N, ...), one row per case."""

RELATIVE_ERROR_FLOOR = 1e-6
"""Smallest max|ref| that a relative error is taken to: a millionth of the intensity unit."""
CHUNK = 2
"""Tiles per call: bounds the memory of the attention, and runs two batch sizes."""
OUTPUT_TOLERANCE, ROOT_TOLERANCE = 1e-4, 1e-3
OUTPUT_REASON = (
    "float32 rounding through 80 convolutions stays near 1e-6, and near 2e-5 where the output is "
    "a thousandth of the features; 1e-4 leaves room for another order of sums"
)
ROOT_REASON = (
    "a converged root of a covariance of condition 3e4 summed in float32 is within 3e-4 of "
    "float64 eigh; an iteration too few is beyond 1e-3"
)
STAGE_FACTOR = 4.0
STAGE_REASON = (
    "the larger of 1e-4 and four times what PyTorch float32 itself drifts here: logits of queries "
    "that are not normalised grow with the square of the intensity"
)
PSNR_CHANGE, SSIM_CHANGE = 0.01, 1e-4
QUALITY_REASON = "trained weights: a change against HR that no table would show"
Reduced = Literal["fp16", "bf16", "int8"]
REDUCED_TOLERANCE: Mapping[Reduced, float] = {"fp16": 1e-2, "bf16": 8e-2, "int8": 2e-1}
REDUCED_REASON = (
    "half precision rounds features of order 1 to 5e-4 (fp16) or 4e-3 (bf16) whatever the size of "
    "the output, so errors count against the intensity unit or the largest output; twenty "
    "roundings are allowed. Eight-bit convolutions are judged by the mean loss of PSNR, and their "
    "bound finds a broken engine: nearest neighbours are 0.3 and more away"
)
REDUCED_QUALITY: Mapping[Reduced, tuple[float, float]] = {
    "fp16": (0.05, 1e-3),
    "bf16": (0.2, 1e-2),
    "int8": (0.5, 2e-2),
}
UNTRAINED = "weights are untrained: quality against HR is reported, not judged"
INFORMATION = "reported, not judged"


class ParityFailure(Exception):
    """The exported model is not the trained one: says which stage drifted, and by how much."""

    def __init__(self, message: str, checks: Sequence[Check]) -> None:
        super().__init__(message)
        self.checks = tuple(checks)


def finite(value: float) -> float | None:
    """``value``, or None if JSON cannot hold it."""
    return float(value) if math.isfinite(value) else None


def unit_error(y: Array, reference: Array) -> float:
    """max|y - ref| / max(max|ref|, 1): relative to the intensity unit or the largest value."""
    return relative_error(y, reference, 1.0)


def norm_error(y: Array, reference: Array) -> float:
    """||y - ref|| / ||ref||; infinite where y is not finite."""
    if not (np.isfinite(y).all() and np.isfinite(reference).all()):
        return math.inf
    scale = max(float(np.linalg.norm(reference)), float(np.finfo(np.float32).tiny))
    return float(np.linalg.norm(y - reference)) / scale


def run_torch(network: nn.Module, batch: Array, dtype: torch.dtype) -> dict[str, Array]:
    """Run ``network`` in ``dtype``: every stage by name."""
    tapped = Tapped(copy.deepcopy(network), taps_of(network)).to(dtype).eval()
    rows: list[list[Array]] = []
    with torch.inference_mode():
        for part in chunks(batch, CHUNK):
            rows.append([y.numpy() for y in tapped(torch.from_numpy(part).to(dtype))])
    return {
        name: np.concatenate(parts)
        for name, parts in zip(tapped.names, zip(*rows, strict=True), strict=True)
    }


def run_onnx(twin: onnx.ModelProto, batch: Array, threads: int = 0) -> dict[str, Array]:
    """Run a graph in ONNX Runtime on a CPU; every output by stage. 0 ``threads`` are all cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = False  # takes what earlier stages freed
    session = onnxruntime.InferenceSession(
        twin.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    rows = [session.run(names, {INPUT_NAME: part}) for part in chunks(batch, CHUNK)]
    stages = [OUTPUT if name == OUTPUT_NAME else name for name in names]
    return {
        stage: np.concatenate(parts)
        for stage, parts in zip(stages, zip(*rows, strict=True), strict=True)
    }


def time_onnx(model: onnx.ModelProto, batch: Array, repeats: int = 3) -> float:
    """The fewest seconds that ONNX Runtime takes on the CPU, after one run to warm up."""
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        session.run(None, {INPUT_NAME: batch})
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def root_of(features: Array, pool: CovariancePooling) -> Array:
    """z (N, C) of features (N, C, h, w) by float64 eigh; NaN where they are not finite."""
    if not np.isfinite(features).all():
        return np.full(features.shape[:2], np.nan)
    exact = copy.deepcopy(pool)
    exact.power = EighPower(0.5)
    with torch.inference_mode():
        return exact(torch.from_numpy(features.astype(np.float64))).numpy()  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The tiles, and the reference answers that every file is compared with."""

    cases: Cases
    network: nn.Module
    reference: Taps
    """PyTorch, eigh, float64."""
    float32: Taps
    """PyTorch, eigh, float32."""
    trained: bool

    def names(self) -> Iterator[tuple[int, str]]:
        return enumerate(case.name for case in self.cases.items)

    def check_float32(self, file: str, engine: Taps) -> list[Check]:
        """All checks of a float32 file, stage by stage in the order of computation."""
        checks: list[Check] = []
        pools = pools_of(self.network)
        for stage in [*self.reference][1:]:
            for i, case in self.names():
                if stage in pools:
                    own_root = self._own_root(file, stage, i, case, engine, *pools[stage])
                    value = norm_error(engine[stage][i], self.reference[stage][i])
                    away = replace(own_root, metric="relative_norm_error", value=finite(value))
                    checks += [away, own_root]
                    continue
                own = relative_error(
                    self.float32[stage][i], self.reference[stage][i], RELATIVE_ERROR_FLOOR
                )
                value = relative_error(
                    engine[stage][i], self.reference[stage][i], RELATIVE_ERROR_FLOOR
                )
                tolerance = max(OUTPUT_TOLERANCE, STAGE_FACTOR * own)
                checks.append(
                    Check(
                        file=file,
                        stage=stage,
                        case=case,
                        metric="relative_error",
                        value=finite(value),
                        tolerance=tolerance,
                        reason=STAGE_REASON,
                    )
                )
        return [*checks, *self.output_checks(file, engine[OUTPUT])]

    def output_checks(
        self,
        file: str,
        y: Array,
        tolerance: float | None = OUTPUT_TOLERANCE,
        reason: str = OUTPUT_REASON,
        quality: tuple[float, float] = (PSNR_CHANGE, SSIM_CHANGE),
    ) -> list[Check]:
        """Checks of the output: errors, PSNR between the engines, change against HR."""
        checks: list[Check] = []

        def add(case: str, metric: str, value: float, limit: float | None, why: str) -> None:
            checks.append(
                Check(
                    file=file,
                    stage=OUTPUT,
                    case=case,
                    metric=metric,
                    value=finite(value),
                    tolerance=limit,
                    reason=why,
                )
            )

        for i, case in self.names():
            reference = self.reference[OUTPUT][i]
            error = relative_error(y[i], reference, RELATIVE_ERROR_FLOOR)
            add(case, "relative_error", error, tolerance, reason)
            add(case, "max_abs_error", float(np.abs(y[i] - reference).max()), None, INFORMATION)
            add(case, "psnr_between_db", psnr(reference, y[i]), None, INFORMATION)
            hr = self.cases.items[i].hr
            if hr is not None:
                why = QUALITY_REASON if self.trained else UNTRAINED
                change = abs(psnr(hr, y[i]) - psnr(hr, reference))
                add(case, "psnr_change_db", change, quality[0] if self.trained else None, why)
                change = abs(ssim(hr, y[i]) - ssim(hr, reference))
                add(case, "ssim_change", change, quality[1] if self.trained else None, why)
        return checks

    def part(self, tiles: Sequence[int]) -> "Gate":
        """The same gate with some of its tiles alone."""
        rows = list(tiles)
        items = tuple(self.cases.items[i] for i in rows)
        return replace(
            self,
            cases=replace(self.cases, items=items),
            reference={stage: y[rows] for stage, y in self.reference.items()},
            float32={stage: y[rows] for stage, y in self.float32.items()},
        )

    def check_reduced(self, file: str, engine: Taps, precision: Reduced) -> list[Check]:
        """All checks of a run whose arithmetic rounds to ``precision``, in order of computation."""
        checks: list[Check] = []
        pools = pools_of(self.network)
        for stage in [*self.reference][1:]:
            for i, case in self.names():
                if stage in pools:
                    checks.append(self._own_root(file, stage, i, case, engine, *pools[stage]))
                else:
                    checks.append(self._finite(file, stage, i, case, engine[stage][i]))
        return [*checks, *self._reduced_output(file, engine[OUTPUT], precision)]

    def _own_root(
        self,
        file: str,
        stage: str,
        i: int,
        case: str,
        engine: Taps,
        features: str,
        pool: CovariancePooling,
    ) -> Check:
        """Compare z with the exact root of the features that the same run computed."""
        own = root_of(engine[features][i : i + 1], pool)[0]
        return Check(
            file=file,
            stage=stage,
            case=case,
            metric="root_error_on_own_features",
            value=finite(norm_error(engine[stage][i], own)),
            tolerance=ROOT_TOLERANCE,
            reason=ROOT_REASON,
        )

    def _finite(self, file: str, stage: str, i: int, case: str, y: Array) -> Check:
        """Report the error of a stage; fail where the stage is not finite."""
        value = unit_error(y, self.reference[stage][i])
        good = math.isfinite(value)
        return Check(
            file=file,
            stage=stage,
            case=case,
            metric="unit_error",
            value=finite(value),
            tolerance=None if good else float(np.finfo(np.float32).max),
            reason=INFORMATION if good else "must be finite",
        )

    def _reduced_output(self, file: str, y: Array, precision: Reduced) -> list[Check]:
        checks: list[Check] = []
        index = {case: i for i, case in self.names()}
        for check in self.output_checks(file, y, None, INFORMATION, REDUCED_QUALITY[precision]):
            checks.append(check)
            if check.metric == "relative_error":
                i = index[check.case]
                value = unit_error(y[i], self.reference[OUTPUT][i])
                checks.append(
                    replace(
                        check,
                        metric="unit_error",
                        value=finite(value),
                        tolerance=REDUCED_TOLERANCE[precision],
                        reason=REDUCED_REASON,
                    )
                )
        return checks

    def torch_float32(self) -> list[Check]:
        """Report how far PyTorch in float32 is from PyTorch in float64, for comparison."""
        checks = []
        for stage in (s for s in self.reference if s == OUTPUT or s.endswith(".z")):
            for i, case in self.names():
                y, reference = self.float32[stage][i], self.reference[stage][i]
                if stage == OUTPUT:
                    metric = "relative_error"
                    value = relative_error(y, reference, RELATIVE_ERROR_FLOOR)
                else:
                    metric, value = "relative_norm_error", norm_error(y, reference)
                checks.append(
                    Check(
                        file="PyTorch float32",
                        stage=stage,
                        case=case,
                        metric=metric,
                        value=finite(value),
                        tolerance=None,
                        reason=INFORMATION,
                    )
                )
        return checks


def judge(checks: Sequence[Check], hint: str = "") -> None:
    """Raise ParityFailure naming the first stage beyond its tolerance, in order of computation."""
    failed = [check for check in checks if not check.passed]
    if not failed:
        return
    first = failed[0]
    stages = list(dict.fromkeys(check.stage for check in failed))
    same = [check for check in failed if check.stage == first.stage and check.file == first.file]
    worst = max(same, key=lambda c: math.inf if c.value is None else c.value / (c.tolerance or 1))
    value = "not finite" if worst.value is None else f"{worst.value:.2e}"
    others = [stage for stage in stages if stage != first.stage]
    after = f"; after it {', '.join(others)}" if others else ""
    raise ParityFailure(
        f"{first.file}: the {kind_of(first.stage)} drifted: {first.stage}, case "
        f"'{worst.case}': {worst.metric} {value}, tolerance {worst.tolerance:.0e}"
        f" ({len(failed)} of {len(checks)} checks failed{after}){hint}",
        checks,
    )
