"""poan-export, top to bottom: checkpoint in, folder with models, vectors and manifest out."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from poan_export.attention import Form, MergedSpatial
from poan_export.onnx_export import (
    INPUT_NAME,
    LEAST_OPSET,
    MAX_BATCH,
    OUTPUT_NAME,
    export_twin,
    without_stages,
)
from poan_export.package import (
    Json,
    created_by,
    verdict,
    whole_folder,
    write_manifest,
    write_model,
    write_vectors,
)
from poan_export.parity import (
    RELATIVE_ERROR_FLOOR,
    Check,
    Gate,
    judge,
    run_onnx,
    run_torch,
)
from poan_export.real_tiles import REAL_TILES, gate_cases
from poan_export.rewrite import rewrite, rules_for
from poan_export.root import RootName, Scheme
from poan_export.spectrum import Choice, candidates, choose
from poan_export.stages import pools_of
from poan_runtime.errors import PoanError
from poan_train.checkpoint import Facts, load_network
from poan_train.resample import Grid

DEFAULT_TILE = {"poan": 64, "poan-lite": 48}
OTHER_TILE = 64
BATCH = {"min": 1, "opt": 8, "max": MAX_BATCH}
Precision = Literal["fp32", "fp16", "bf16"]
Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What ``poan-export`` was asked for. Lengths are LR voxels."""

    ckpt: Path
    out: Path | None = None
    half: Literal["fp16", "bf16"] | None = None
    tile: int | None = None
    halo: int = 2
    overlap: int = 6
    opset: int = LEAST_OPSET
    root: RootName | None = None
    iterations: int | None = None
    attention: Form = "box"
    parity_data: Path | None = None


def export(request: Request, report: Report) -> Path:
    """Export a checkpoint; the folder written.

    Raises PoanError for what the user can mend and ParityFailure where the gate fails; then
    nothing is written.
    """
    network, facts = load_network(request.ckpt)
    tile = request.tile or DEFAULT_TILE.get(facts.arch, OTHER_TILE)
    if 2 * request.halo + request.overlap >= tile:
        raise PoanError(
            f"tile {tile} is too small: need more than 2 * halo + overlap = "
            f"{2 * request.halo + request.overlap}"
        )
    out = request.out or request.ckpt.with_suffix("")
    with whole_folder(out) as folder:
        gate = open_gate(network, facts, tile, request.parity_data)
        report(f"reference computed on {len(gate.cases.items)} tiles ({gate.cases.source})")
        choice = choose_root(network, gate, request)
        if choice is not None:
            report(describe(choice))
        scheme = choice.scheme if choice else Scheme(name="quintic", iterations=7)
        exported = rewrite(network, rules_for(scheme, request.attention))
        twin = export_twin(exported, tile, request.opset)
        checks = gate.check_float32("model.onnx", run_onnx(twin, gate.cases.batch))
        judge(checks)
        report(summary("model.onnx", checks))
        entries = [write_model(folder, "model.onnx", without_stages(twin), "fp32")]
        checks += gate.torch_float32()
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
            "batch": BATCH,
            "halo": request.halo,
            "overlap": request.overlap,
            "gmac_per_tile": gmac(exported, tile),
            "intensity": facts.intensity,
            "grid": grid_of(facts),
            "square_root": square_root_entry(network, choice),
            "attention": {"form": attention_form(exported, request.attention)},
            "opset": request.opset,
            "inputs": {"name": INPUT_NAME},
            "outputs": {"name": OUTPUT_NAME},
            "files": entries,
            "vectors": write_vectors(folder, gate),
            "relative_error_floor": RELATIVE_ERROR_FLOOR,
            "parity": verdict([check.json() for check in checks]),
            "training": {**facts.training, "metrics": facts.metrics},
            "created_by": created_by(),
        }
        write_manifest(folder, manifest)
    return out


def open_gate(network: nn.Module, facts: Facts, tile: int, parity_data: Path | None) -> Gate:
    """The tiles, and the trained network's answers to them in float64 and float32."""
    method = facts.degradation.get("method", "bicubic")
    cases = gate_cases(tile, facts.scale, method, parity_data)
    return Gate(
        cases=cases,
        network=network,
        reference=run_torch(network, cases.batch, torch.float64),
        float32=run_torch(network, cases.batch, torch.float32),
        trained=bool(facts.training.get("steps")),
    )


def choose_root(network: nn.Module, gate: Gate, request: Request) -> Choice | None:
    """The iteration for this checkpoint, or the one that was asked for; None without NCAB."""
    if not pools_of(network):
        return None
    root = request.root
    schemes = candidates(root)
    if request.iterations is not None:
        schemes = [Scheme(name=root or "newton-schulz", iterations=request.iterations)]
    return choose(network, gate.reference, gate.float32, REAL_TILES, schemes)


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
        f"{worst('relative_norm_error', '.z')} at z"
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


def gmac(network: nn.Module, tile: int) -> float:
    """Multiply-accumulates of one tile, in 1e9, as exported."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 1, tile, tile))
    return float(round(counter.get_total_flops() / 2e9, 3))


def to_stderr(line: str) -> None:
    sys.stderr.write(f"poan-export: {line}\n")
