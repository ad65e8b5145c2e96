"""The ONNX files of an export: traced, written, judged; and the plans built from them."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from torch import nn

from poan_export.gate.parity import Gate, judge, run_onnx
from poan_export.gate.real_tiles import Scans
from poan_export.package import write_model
from poan_export.plans.make import PlanMaker, eight_bit_entries
from poan_export.precision.cpu import can_judge, cpu_answers, cpu_precision
from poan_export.precision.half_graph import HalfGraph, islands_of, search_islands, trace_half
from poan_export.request import Request, opset_of
from poan_export.trace.onnx_export import export_twin, without_stages
from poan_runtime.errors import Say
from poan_runtime.models.manifest import Check, CpuPrecision, ModelFile

FULL = "model.onnx"


@dataclass(frozen=True, kw_only=True)
class Written:
    """Model files that an export has written, all checks of the gate, and what CPUs lose."""

    files: tuple[ModelFile, ...]
    checks: tuple[Check, ...] = ()
    on_cpus: tuple[CpuPrecision, ...] = ()

    def __add__(self, other: "Written") -> "Written":
        return Written(
            files=self.files + other.files,
            checks=self.checks + other.checks,
            on_cpus=self.on_cpus + other.on_cpus,
        )


def write_graphs(
    exported: nn.Module, gate: Gate, request: Request, plans: PlanMaker, scans: Scans
) -> Written:
    """Trace, write and judge the graphs, and build the plans of the last graph.

    Two things happen at once, twice. While Python traces the half-precision graph on one core,
    ONNX Runtime runs the float32 graph on the others. (PyTorch modules never run beside a trace:
    the trace patches their calls.) While the gate judges the last graph, TensorRT builds its
    plan. If the gate fails, the whole folder is thrown away.
    """
    tile, opset, say = gate.cases.batch.shape[-1], opset_of(request), plans.say
    others = max(1, (os.cpu_count() or 1) - 1)  # cores that tracing leaves
    with ThreadPoolExecutor(max_workers=1) as beside:
        twin = export_twin(exported, tile, opset)
        files = [write_model(plans.folder, FULL, without_stages(twin), "fp32")]
        answers = beside.submit(run_onnx, twin, gate.cases.batch, others)
        on_cpu = None
        if can_judge(say):
            on_cpu = beside.submit(cpu_answers, plans.folder / FULL, gate, scans.truths)
        half = None if request.find_islands else half_graph(exported, gate, request, say)
        checks = gate.check_float32(FULL, answers.result())
        judge(checks)
        say(summary(FULL, checks))
        checks += gate.torch_float32()
        if request.find_islands:  # the search runs modules, and needs a sound float32 graph
            half = half_graph(exported, gate, request, say)
        if half is not None:
            files.append(half.write(plans.folder))
        building = beside.submit(plans.make, files[-1:])
        if half is not None:
            checks += half.judged(gate, say)
            say(summary(half.file, checks))
        on_cpus = (cpu_precision(FULL, on_cpu.result(), gate, say),) if on_cpu else ()
        files += building.result()
    return Written(files=tuple(files), checks=tuple(checks), on_cpus=on_cpus)


def half_graph(exported: nn.Module, gate: Gate, request: Request, say: Say) -> HalfGraph | None:
    """Trace the half-precision graph; None where none was asked for."""
    if request.half is None:
        return None
    if request.find_islands:
        islands = search_islands(exported, gate, request.half, say)
    else:
        islands = islands_of(exported, request.half, request.islands)
    tile = gate.cases.batch.shape[-1]
    return trace_half(exported, request.half, islands, tile, opset_of(request))


def write_eight_bit(
    files: Sequence[ModelFile], gate: Gate, request: Request, plans: PlanMaker, scans: Scans
) -> Written:
    """Write the 8-bit graphs and their plans.

    An int8 file whose other parts are float32 is also judged in bf16 on this CPU.
    """
    folder, say, kinds = plans.folder, plans.say, request.engine.eight_bit
    found = eight_bit_entries(folder, files, scans.truths, kinds, say)
    on_cpus = []
    for file in found if request.half is None else ():
        if file.precision == "int8" and can_judge(say):  # CPUs have no fp8
            answers = cpu_answers(folder / file.name, gate, scans.truths, folder / FULL)
            on_cpus.append(cpu_precision(file.name, answers, gate, say, "int8"))
    return Written(files=(*found, *plans.make(found)), on_cpus=tuple(on_cpus))


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
