"""poan-export, top to bottom: checkpoint in, folder with models, vectors and manifest out."""

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from poan_export.gate.parity import (
    RELATIVE_ERROR_FLOOR,
    Check,
    Gate,
    judge,
    run_onnx,
    run_torch,
    time_onnx,
)
from poan_export.gate.real_tiles import REAL_TILES, Case, gate_cases
from poan_export.gate.spectrum import Choice, candidates, choose
from poan_export.package import (
    Json,
    created_by,
    verdict,
    whole_folder,
    write_manifest,
    write_model,
    write_vectors,
)
from poan_export.plans.fit_network import fit_network
from poan_export.plans.make import (
    NO_ENGINE,
    EngineRequest,
    PlanMaker,
    calibration_cases,
    check_request,
    eight_bit_entries,
    flavour_for,
)
from poan_export.precision.cpu import can_judge, cpu_answers, cpu_precisions
from poan_export.precision.half_graph import islands_of, search_islands, trace_half
from poan_export.precision.islands import Half, default_islands, in_half
from poan_export.rewrite.attention import FORMS, Form, MergedSpatial
from poan_export.rewrite.network import rewrite, rules_for
from poan_export.rewrite.root import RootName, Scheme
from poan_export.trace.cost import gmac_per_part
from poan_export.trace.onnx_export import (
    INPUT_NAME,
    LEAST_OPSET,
    MOST_BATCH,
    OUTPUT_NAME,
    export_twin,
    without_stages,
)
from poan_export.trace.stages import pools_of
from poan_runtime.errors import PoanError
from poan_train.checkpoint import Facts, load_network
from poan_train.degrade import Degradation
from poan_train.networks import ARCHITECTURES
from poan_train.resample import Grid

BF16_OPSET = 22
BATCH = {"min": 1, "opt": 8, "max": MOST_BATCH}
Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What ``poan-export`` was asked for. Lengths are LR voxels."""

    ckpt: Path
    out: Path | None = None
    half: Half | None = None
    tile: int | None = None
    halo: int | None = None
    overlap: int | None = None
    """None: the architecture's own, as for ``tile``."""
    opset: int | None = None
    """20, and 22 for bf16, which Conv has from there on."""
    root: RootName | None = None
    iterations: int | None = None
    attention: Form | Literal["auto"] = "box"
    parity_data: Path | None = None
    islands: tuple[str, ...] | None = None
    """Modules that stay in float32 beside the fixed ones; None for the default."""
    find_islands: bool = False
    engine: EngineRequest = NO_ENGINE
    vram: int | None = None
    """Bytes of device memory that an engine may take; chooses tile and batch."""


def export(request: Request, report: Report) -> Path:
    """Export a checkpoint; the folder written.

    Raises PoanError for what the user can mend and ParityFailure where the gate fails; then
    nothing is written.
    """
    network, facts = load_network(request.ckpt)
    trained = bool(facts.training.get("steps"))
    check_request(request.engine, request.half or "fp32", trained=trained)
    tile, batch = size_of(network, facts, request, report)
    own = ARCHITECTURES[facts.arch]
    halo = own.halo if request.halo is None else request.halo
    overlap = own.overlap if request.overlap is None else request.overlap
    if 2 * halo + overlap >= tile:
        raise PoanError(
            f"tile {tile} is too small: need more than 2 * halo + overlap = {2 * halo + overlap}"
        )
    opset = opset_of(request)
    out = request.out or request.ckpt.with_suffix("")
    with whole_folder(out) as folder:
        gate = open_gate(network, facts, tile, request.parity_data)
        report(f"reference computed on {len(gate.cases.items)} tiles ({gate.cases.source})")
        choice = choose_root(network, gate, request)
        if choice is not None:
            report(describe(choice))
        scheme = choice.scheme if choice else Scheme(name="quintic", iterations=7)
        form = request.attention
        if form == "auto":
            form = fastest_form(network, scheme, tile, opset)
        exported = rewrite(network, rules_for(scheme, form))
        plans = PlanMaker(
            folder=folder,
            out=out,
            batch=batch,
            flavour=flavour_for(request.engine, report),
            sm=request.engine.sm,
            report=report,
        )

        def truths() -> list[Case]:
            return calibration_cases(request.parity_data, tile, facts.scale, method_of(facts))

        entries, checks, on_cpus = write_graphs(exported, gate, request, plans, truths)
        if request.engine.eight_bit:
            more = eight_bit_entries(folder, entries, truths(), request.engine.eight_bit, report)
            if request.half is None:
                on_cpus += int8_on_cpus(folder, more, gate, truths(), report)
            entries += [*more, *plans.make(more)]
        parts = gmac_per_part(exported, tile)
        manifest = {
            "manifest_version": 1,
            "name": out.name,
            "network": {
                "arch": facts.arch,
                "parameters": sum(p.numel() for p in network.parameters()),
                "config": facts.network,
            },
            "scale": facts.scale,
            "contrast": facts.contrast,
            "tile": tile,
            "batch": batch,
            "halo": halo,
            "overlap": overlap,
            "gmac_per_tile": round(sum(parts.values()), 3),
            "gmac_per_part": parts,
            "intensity": facts.intensity,
            "grid": grid_of(facts),
            "square_root": square_root_entry(network, choice),
            "attention": {"form": attention_form(exported, form)},
            "opset": opset,
            "inputs": {"name": INPUT_NAME},
            "outputs": {"name": OUTPUT_NAME},
            "files": entries,
            "vectors": write_vectors(folder, gate),
            "relative_error_floor": RELATIVE_ERROR_FLOOR,
            "parity": verdict([check.json() for check in checks]),
            "cpu_precisions": on_cpus,
            "training": {**facts.training, "metrics": facts.metrics},
            "created_by": created_by(),
        }
        write_manifest(folder, manifest)
    return out


def write_graphs(
    exported: nn.Module,
    gate: Gate,
    request: Request,
    plans: PlanMaker,
    truths: Callable[[], Sequence[Case]],
) -> tuple[list[Json], list[Check], list[Json]]:
    """Trace, write and judge the graphs, and build the plans of the last.

    Their manifest entries, all checks, and what the manifest says about CPUs. Tracing keeps one
    core busy with Python: meanwhile the float32 graph answers the gate. (No module of torch runs
    beside a trace, which patches their calls.) The builder works while the graph that it builds
    is judged. What fails is never kept.
    """
    tile, opset, report = gate.cases.batch.shape[-1], opset_of(request), plans.report
    first, half, on_cpu = plans.folder / "model.onnx", None, None
    others = max(1, (os.cpu_count() or 1) - 1)  # cores that tracing leaves
    with ThreadPoolExecutor(max_workers=1) as beside:
        twin = export_twin(exported, tile, opset)
        entries = [write_model(plans.folder, first.name, without_stages(twin), "fp32")]
        answers = beside.submit(run_onnx, twin, gate.cases.batch, others)
        if can_judge(report):
            on_cpu = beside.submit(cpu_answers, first, gate, truths())
        if request.half is not None and not request.find_islands:
            islands = islands_of(exported, request.half, request.islands)
            half = trace_half(exported, request.half, islands, tile, opset)
        checks = gate.check_float32(first.name, answers.result())
        judge(checks)
        report(summary(first.name, checks))
        checks += gate.torch_float32()
        if request.half is not None and half is None:
            islands = search_islands(exported, gate, request.half, report)
            half = trace_half(exported, request.half, islands, tile, opset)
        if half is not None:
            entries.append(half.write(plans.folder))
        building = beside.submit(plans.make, entries[-1:])
        if half is not None:
            checks += half.judged(gate, report)
            report(summary(half.file, checks))
        on_cpus = cpu_precisions(first.name, on_cpu.result(), gate, report) if on_cpu else []
        return [*entries, *building.result()], checks, on_cpus


def int8_on_cpus(
    folder: Path, entries: Sequence[Json], gate: Gate, truths: Sequence[Case], report: Report
) -> list[Json]:
    """What the manifest says about the int8 file among ``entries`` on CPUs, which have no fp8."""
    found = []
    for name in (entry["name"] for entry in entries if entry["precision"] == "int8"):
        if can_judge(report):
            answers = cpu_answers(folder / name, gate, truths, folder / "model.onnx")
            found += cpu_precisions(name, answers, gate, report, "int8")
    return found


def size_of(
    network: nn.Module, facts: Facts, request: Request, report: Report
) -> tuple[int, dict[str, int]]:
    """Tile and batch range: those asked for, those that fit into ``vram``, or the default."""
    if request.vram is None:
        return request.tile or ARCHITECTURES[facts.arch].tile, BATCH
    form = "box" if request.attention == "auto" else request.attention
    # neither the root's iteration nor its count matters for the memory
    exported = rewrite(network, rules_for(Scheme(name="quintic", iterations=7), form))
    if request.half is not None:
        exported = in_half(exported, request.half, default_islands(exported, request.half))
    found = fit_network(
        exported,
        scale=facts.scale,
        vram=request.vram,
        precision=request.half or "fp32",
        engine=request.engine.engine,
        sm=request.engine.sm,
        opset=opset_of(request),
        tile=request.tile,
        report=report,
    )
    report(
        f"--vram: tile {found.tile}, batch up to {found.batch.max}: "
        f"{found.device_bytes / 2**20:.0f} MiB on the device"
    )
    return found.tile, asdict(found.batch)


def open_gate(network: nn.Module, facts: Facts, tile: int, parity_data: Path | None) -> Gate:
    """The tiles, and the trained network's answers to them in float64 and float32."""
    cases = gate_cases(tile, facts.scale, method_of(facts), parity_data)
    return Gate(
        cases=cases,
        network=network,
        reference=run_torch(network, cases.batch, torch.float64),
        float32=run_torch(network, cases.batch, torch.float32),
        trained=bool(facts.training.get("steps")),
    )


def method_of(facts: Facts) -> Degradation:
    """How the LR of the training was made."""
    method: Degradation = facts.degradation.get("method", "bicubic")
    return method


def choose_root(network: nn.Module, gate: Gate, request: Request) -> Choice | None:
    """The iteration for this checkpoint, or the one that was asked for; None without NCAB."""
    if not pools_of(network):
        return None
    root = request.root
    schemes = candidates(root)
    if request.iterations is not None:
        schemes = [Scheme(name=root or "newton-schulz", iterations=request.iterations)]
    return choose(network, gate.reference, gate.float32, REAL_TILES, schemes)


def opset_of(request: Request) -> int:
    """The opset asked for, or the least that holds the precision."""
    least = BF16_OPSET if request.half == "bf16" else LEAST_OPSET
    if request.opset is not None and request.opset < least:
        raise PoanError(f"--opset {request.opset}: {request.half or 'export'} needs {least}")
    return request.opset or least


def fastest_form(network: nn.Module, scheme: Scheme, tile: int, opset: int) -> Form:
    """The form of the attention that ONNX Runtime runs faster here, on one tile."""
    seconds: dict[Form, float] = {}
    for form in FORMS:
        model = without_stages(export_twin(rewrite(network, rules_for(scheme, form)), tile, opset))
        seconds[form] = time_onnx(model, np.zeros((1, 1, tile, tile), np.float32))
    return min(seconds, key=lambda form: seconds[form])


def describe(choice: Choice) -> str:
    s = choice.scheme
    return (
        f"square root: {s.name}, {s.iterations} iterations ({s.products} products); condition "
        f"{choice.condition_seen:.1e} on real tiles, z within {choice.error:.1e}"
    )


def summary(file: str, checks: Sequence[Check]) -> str:
    """One line: the largest error at the output and at z."""

    def worst(metric: str, stage_end: str) -> str:
        values = [
            c.value
            for c in checks
            if c.metric == metric and c.stage.endswith(stage_end) and c.value is not None
        ]
        return f"{max(values):.1e}" if values else "none"

    return (
        f"{file}: parity pass, relative error {worst('relative_error', 'output')} at the output, "
        f"root error {worst('root_error_on_own_features', '.z')} at z"
    )


def square_root_entry(network: nn.Module, choice: Choice | None) -> Json:
    if choice is None:
        return {"scheme": "none"}
    _, pool = next(iter(pools_of(network).values()))
    return {
        "scheme": choice.scheme.name,
        "iterations": choice.scheme.iterations,
        "eps": pool.eps,
        "floor": pool.floor,
        "condition_seen": choice.condition_seen,
    }


def attention_form(network: nn.Module, form: Form) -> str:
    has = any(isinstance(m, MergedSpatial) and len(m.levels) for m in network.modules())
    return form if has else "none"


def grid_of(facts: Facts) -> Grid:
    return "kspace" if facts.degradation.get("method") == "kspace" else "centre"


def to_stderr(line: str) -> None:
    sys.stderr.write(f"poan-export: {line}\n")
