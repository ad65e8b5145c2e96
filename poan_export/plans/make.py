"""The engines of an export: 8-bit graphs, plans for each group of GPUs, and their gate."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import onnx

from poan_export.gate.real_tiles import Case
from poan_export.package import write_model
from poan_export.precision.quantise import (
    MOST_LOSS_DB,
    Kind,
    QuantisationRefusedError,
    quantise_or_refuse,
)
from poan_runtime.engines.tensorrt.build.add import folders_of
from poan_runtime.engines.tensorrt.build.judge import gate_plans
from poan_runtime.engines.tensorrt.build.plan import (
    build_plan,
    choose_flavour,
    describe,
    order_from,
    plan_name,
    source_of_plans,
    targets,
)
from poan_runtime.engines.tensorrt.library import Flavour
from poan_runtime.errors import PoanError, Say
from poan_runtime.models.manifest import (
    BatchRange,
    Check,
    ModelFile,
    Parity,
    Precision,
    read_manifest,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """What to build: ``--engine``, ``--sm``, ``--int8``, ``--fp8``."""

    engine: str = "auto"
    sm: str | None = None
    eight_bit: tuple[Kind, ...] = ()


NO_ENGINE = EngineRequest(engine="none")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chosen:
    """The flavour of TensorRT to build with, and why; no flavour where there is none to build."""

    flavour: Flavour | None
    why: str

    def __str__(self) -> str:
        return self.why if self.flavour is None else f"engine: {self.flavour}: {self.why}"


def check_request(request: EngineRequest, precision: Precision, *, trained: bool) -> Chosen:
    """Refuse early what would be refused after minutes of exporting; else what to build with."""
    for kind in request.eight_bit:
        if not trained:
            raise PoanError(f"--{kind} needs trained weights: its loss is judged against the truth")
        if precision == "bf16":
            raise PoanError(f"--{kind}: expected --fp16 or full precision beside it, got --bf16")
    if request.engine == "none":
        return Chosen(flavour=None, why="--engine none")
    flavour, why = choose_flavour(request.engine)
    if flavour == "tensorrt" and request.sm is not None:
        raise PoanError("--sm is for --engine tensorrt-rtx; tensorrt builds for the GPU at hand")
    for asked in (precision, *request.eight_bit):
        targets(asked, request.sm)
    return Chosen(flavour=flavour, why=why)


def eight_bit_entries(
    folder: Path,
    entries: Sequence[ModelFile],
    cases: Sequence[Case],
    kinds: Sequence[Kind],
    say: Say,
) -> list[ModelFile]:
    """Write ``model.int8.onnx`` or ``model.fp8.onnx``, but none that loses too much; entries."""
    return [
        entry for kind in kinds for entry in _eight_bit_entry(folder, entries, cases, kind, say)
    ]


def _eight_bit_entry(
    folder: Path, entries: Sequence[ModelFile], cases: Sequence[Case], kind: Kind, say: Say
) -> list[ModelFile]:
    """One 8-bit file, or none.

    It is the half-precision graph where there is one, else the fp32 one, with Q/DQ; the loss
    is measured with the fp32 graph.
    """
    source = source_of_plans(entries)
    full = next(entry for entry in entries if entry.precision == "fp32")
    models: dict[str, onnx.ModelProto] = {
        entry.precision: onnx.load(folder / entry.name) for entry in (full, source)
    }
    try:
        twins, loss = quantise_or_refuse(models, cases, kind)
    except QuantisationRefusedError as refusal:
        say(str(refusal))
        return []
    name = f"model.{kind}.onnx"
    say(
        f"{name}: {loss.mean_db:.3f} dB of PSNR lost against fp32 on {loss.tiles} tiles "
        f"(worst {loss.worst_db:.3f})"
    )
    check = Check(
        file=name,
        stage="output",
        case=f"{loss.tiles} real tiles",
        metric="psnr_loss_db",
        value=loss.mean_db,
        tolerance=MOST_LOSS_DB,
        reason="a loss that no table would show",
    )
    twin = twins[source.precision]
    return [write_model(folder, name, twin, kind, source.islands, Parity.of([check]))]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanMaker:
    """Builds the plans of one export beside its ONNX files, in ``folder``.

    ``out`` is the name that the folder will have: a failed build leaves its log beside it.
    """

    folder: Path
    out: Path
    batch: BatchRange
    flavour: Flavour | None
    """None builds none."""
    sm: str | None
    say: Say

    def make(self, sources: Sequence[ModelFile]) -> list[ModelFile]:
        """The plans of some ONNX files, by their entries; entries for the manifest."""
        if self.flavour is None:
            return []
        return [
            self._one(source, self.flavour, sms)
            for source in sources
            for sms in self._targets(source.precision)
        ]

    def _targets(self, precision: Precision) -> list[tuple[str, ...]]:
        return targets(precision, self.sm) if self.flavour == "tensorrt-rtx" else [()]

    def _one(self, source: ModelFile, flavour: Flavour, sms: tuple[str, ...]) -> ModelFile:
        name = plan_name(sms, source.precision)
        order = order_from(
            self.folder,
            source,
            name,
            flavour,
            sms,
            self.batch.opt,
            log=self.out.with_name(f"{self.out.name}.{name}.log"),
        )
        built = build_plan(order)
        self.say(describe(name, built.compute_capabilities, built.report))
        return built.manifest_entry()


def finish(folder: Path, request: EngineRequest, say: Say) -> bool:
    """Judge the plans of a finished export; whether all that was asked for is there and good."""
    good = True
    for each in folders_of(folder):
        files = read_manifest(each).files
        failed = gate_plans(each, [file.name for file in files if file.kind == "plan"], say)
        good &= not failed and set(request.eight_bit) <= {file.precision for file in files}
    return good
