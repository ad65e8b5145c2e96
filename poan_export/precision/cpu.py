"""Judge how much a file loses when OpenVINO runs it in bf16 on a CPU.

The file is the same; the engine rounds operands and features to bf16. Covariance and matrix root
stay in float32 (an iteration in bf16 is not a root: z was not finite). A file whose convolutions
are in eight bits keeps them so, and the rest of it is rounded to bf16.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from poan_export.gate.parity import Gate, Reduced, Taps, finite, run_onnx
from poan_export.gate.real_tiles import BRIGHTEST, Case
from poan_export.precision.quantise import MOST_LOSS_DB as MOST_LOSS_OF_EIGHT_BITS_DB
from poan_export.trace.stages import OUTPUT, pools_of
from poan_runtime.errors import Say
from poan_runtime.models.manifest import Check, CpuPrecision, Parity
from poan_train.metrics import psnr

PRECISION: Literal["bf16"] = "bf16"
MOST_LOSS_DB = {"fp32": 0.01, "int8": MOST_LOSS_OF_EIGHT_BITS_DB}
"""By the precision of the file."""
LOSS_REASON = "trained weights: the mean loss against HR that no table would show"
CLIPS = "beyond the calibrated range eight-bit convolutions clip: reported, not judged"
UNTRAINED = "weights are untrained: the loss against HR is reported, not judged"


@dataclass(frozen=True, kw_only=True)
class CpuAnswers:
    """Answers of a file in bf16 on a CPU, and of the float32 file in float32."""

    stages: Taps
    """OpenVINO in bf16: the gate's tiles."""
    cases: tuple[Case, ...]
    """Real tiles with their truth."""
    full: NDArray[Any]
    """ONNX Runtime in float32: the real tiles."""
    half: NDArray[Any]
    """OpenVINO in bf16: the real tiles."""


def can_judge(say: Say) -> bool:
    """Whether this machine has OpenVINO and a CPU with bf16."""
    if importlib.util.find_spec("openvino") is None:
        return False
    from poan_runtime.engines.precision import cpu_has_bf16

    if not cpu_has_bf16():
        say("bf16 on CPUs: not judged, this one has none")
        return False
    return True


def cpu_answers(
    path: Path, gate: Gate, more_cases: Sequence[Case], float32: Path | None = None
) -> CpuAnswers:
    """Run the file at ``path`` in bf16, and the ``float32`` file (None: the same), on one core.

    ``more_cases`` are real tiles with their truth, beside the gate's own; every fourth is run.
    Runs no module of torch, so that it may work beside a trace.
    """
    real = (*more_cases[::4], *(case for case in gate.cases.items if case.hr is not None))
    batch = np.stack([case.lr for case in real])
    both = run_openvino(path, root_parts(gate), np.concatenate([gate.cases.batch, batch]))
    count = len(gate.cases.items)
    return CpuAnswers(
        stages={stage: rows[:count] for stage, rows in both.items()},
        cases=real,
        full=run_onnx(onnx.load(float32 or path), batch, threads=1)[OUTPUT],
        half=both[OUTPUT][count:],
    )


def cpu_precision(
    file: str,
    answers: CpuAnswers,
    gate: Gate,
    say: Say,
    own: Literal["fp32", "int8"] = "fp32",
) -> CpuPrecision:
    """The manifest's entry about how a file of precision ``own`` may run on a CPU."""
    from poan_runtime.engines.openvino.library import openvino

    stages = answers.stages
    seen = replace(
        gate, reference={name: gate.reference[name] for name in gate.reference if name in stages}
    )
    rounded: Reduced = PRECISION if own == "fp32" else own  # the coarser of the two
    checks = seen.check_reduced(f"{file} in {PRECISION}", stages, rounded)
    if own == "int8":
        checks = [
            replace(c, tolerance=None, reason=CLIPS) if c.case == BRIGHTEST else c for c in checks
        ]
    checks.append(_loss(file, answers, MOST_LOSS_DB[own] if gate.trained else None))
    parity = Parity.of(checks)
    worst = next((c for c in checks if not c.passed), checks[-1])
    value = "not finite" if worst.value is None else f"{worst.value:.2g}"
    say(
        f"{file} in {PRECISION} on a CPU (OpenVINO): {parity.verdict}, "
        f"{worst.metric} {value} at {worst.stage}, {worst.case}"
    )
    return CpuPrecision(
        engine="openvino",
        version=openvino.__version__,
        precision=PRECISION,
        file=file,
        float32_parts=tuple(root_parts(gate)),
        parity=parity,
    )


def root_parts(gate: Gate) -> list[tuple[str, str]]:
    """Features and z of each covariance pooling, in the order of computation."""
    return [(features, z) for z, (features, _) in pools_of(gate.network).items()]


def run_openvino(
    path: Path, parts: Sequence[tuple[str, str]], batch: NDArray[Any], precision: str = PRECISION
) -> Taps:
    """Tiles ``batch`` (N, 1, tile, tile) through OpenVINO as the runtime runs them.

    The output, and the features and z of each of ``parts``.
    """
    from poan_runtime.engines.openvino.library import core
    from poan_runtime.engines.openvino.pieces import Chain, compile_chains

    graph = core().read_model(path.read_bytes(), b"")  # what Python cannot read is an OSError
    tile = batch.shape[-1]
    (chain,) = compile_chains(graph, tile=tile, precision=precision, float32_parts=parts, threads=1)
    assert isinstance(chain, Chain)
    rows: dict[str, list[NDArray[Any]]] = {OUTPUT: []}
    for one in batch:
        rows[OUTPUT].append(chain(one[None].astype(np.float32)))
        for stage in (name for part in parts for name in part):
            rows.setdefault(stage, []).append(chain.tensor(stage))
    return {stage: np.concatenate(found) for stage, found in rows.items()}


def _loss(file: str, answers: CpuAnswers, most_db: float | None) -> Check:
    """Mean PSNR against the truth that is lost against float32, in dB."""
    losses = [
        psnr(case.hr, one) - psnr(case.hr, other)
        for case, one, other in zip(answers.cases, answers.full, answers.half, strict=True)
        if case.hr is not None
    ]
    return Check(
        file=f"{file} in {PRECISION}",
        stage=OUTPUT,
        case=f"{len(losses)} real tiles",
        metric="psnr_loss_db",
        value=finite(float(np.mean(losses))),
        tolerance=most_db,
        reason=UNTRAINED if most_db is None else LOSS_REASON,
    )
