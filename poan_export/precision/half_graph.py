"""The half-precision graph of an export: which modules stay in float32, the trace, the verdict."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from torch import nn

from poan_export.gate.parity import Gate, judge, run_onnx
from poan_export.package import write_model
from poan_export.precision.find_islands import find_islands
from poan_export.precision.half_emulation import run_half
from poan_export.precision.islands import (
    DTYPE,
    Half,
    default_islands,
    fixed_islands,
    in_half,
    outermost,
    widened,
)
from poan_export.trace.onnx_export import export_twin, without_stages
from poan_runtime.errors import Say
from poan_runtime.models.manifest import Check, ModelFile


def islands_of(
    exported: nn.Module, precision: Half, asked: Sequence[str] | None
) -> tuple[str, ...]:
    """Modules that stay in float32: the fixed ones and those asked for, or the default."""
    if asked is None:
        return default_islands(exported, precision)
    return outermost([*fixed_islands(exported), *asked])


def search_islands(exported: nn.Module, gate: Gate, precision: Half, say: Say) -> tuple[str, ...]:
    """``--find-islands``: the smallest set beside the fixed ones, printed as config."""
    found = find_islands(exported, gate, precision)
    say(f"--find-islands: {found.trials} runs; the smallest set beside the fixed islands:")
    say(f"islands = {json.dumps(found.islands)}")
    return islands_of(exported, precision, found.islands)


@dataclass(frozen=True, kw_only=True)
class HalfGraph:
    """A network in half precision, as a module and as the ONNX graph with its stages."""

    precision: Half
    islands: tuple[str, ...]
    module: nn.Module
    twin: onnx.ModelProto

    @property
    def file(self) -> str:
        return f"model.{self.precision}.onnx"

    def write(self, folder: Path) -> ModelFile:
        """Write the graph without its stages; its entry for the manifest."""
        model = without_stages(self.twin)
        return write_model(folder, self.file, model, self.precision, self.islands)

    def judged(self, gate: Gate, say: Say) -> list[Check]:
        """Checks of the arithmetic, in emulation, and of the file; raises ParityFailure.

        The file (wiring, weights, islands) runs widened to float32.
        """
        run = run_half(self.module, gate.cases.batch, DTYPE[self.precision])
        name, headroom = run.tightest
        count = len(self.islands)
        say(f"{self.file}: least headroom {headroom:.3g} in {name} ({count} islands)")
        checks = run.checks(self.file)
        checks += gate.check_reduced(self.file, run.stages, self.precision)
        judge(checks, hint="; --find-islands finds what must stay in float32")
        as_file = run_onnx(widened(self.twin), gate.cases.batch)
        checks += gate.check_reduced(f"{self.file} (widened)", as_file, self.precision)
        judge(checks)
        return checks


def trace_half(
    exported: nn.Module, precision: Half, islands: tuple[str, ...], tile: int, opset: int
) -> HalfGraph:
    """Convert a rewritten network and trace it."""
    module = in_half(exported, precision, islands)
    return HalfGraph(
        precision=precision,
        islands=islands,
        module=module,
        twin=export_twin(module, tile, opset),
    )
