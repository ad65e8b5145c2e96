"""The engines of an export: 8-bit graphs, plans for each group of GPUs, and their gate."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from poan_export.gate.real_tiles import Case, hr_tiles, real_case, scan_paths
from poan_export.plans.build import (
    Order,
    build_plan,
    choose_flavour,
    gpu_here,
    plan_name,
    targets,
)
from poan_export.precision.quantise import (
    MOST_LOSS_DB,
    Kind,
    QuantisationRefusedError,
    quantise_or_refuse,
)
from poan_runtime.engines.backend import EngineOptions, open_backend
from poan_runtime.engines.tensorrt.check import check_compute_capability
from poan_runtime.engines.tensorrt.library import Flavour
from poan_runtime.engines.verify import verify, write_verdict
from poan_runtime.errors import PoanError
from poan_runtime.files import sha256_of
from poan_runtime.models.find import find_model
from poan_runtime.models.manifest import BatchRange, read_manifest
from poan_train.degrade import Degradation

Json = dict[str, Any]
Report = Callable[[str], None]
PREFERRED = ("fp16", "bf16", "fp32")
"""Which ONNX file plans are built from: the first of these that there is."""
EIGHT_BIT_SCANS = 8
TILES_PER_SCAN = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """What to build: ``--engine``, ``--sm``, ``--int8``, ``--fp8``."""

    engine: str = "auto"
    sm: str | None = None
    eight_bit: tuple[Kind, ...] = ()


NO_ENGINE = EngineRequest(engine="none")


def check_request(request: EngineRequest, precision: str, *, trained: bool) -> None:
    """Refuse early what would be refused after minutes of exporting."""
    for kind in request.eight_bit:
        if not trained:
            raise PoanError(f"--{kind} needs trained weights: its loss is judged against the truth")
        if precision == "bf16":
            raise PoanError(f"--{kind}: expected --fp16 or full precision beside it, got --bf16")
    if request.engine != "none":
        flavour, _ = choose_flavour(request.engine)
        if flavour == "tensorrt" and request.sm is not None:
            raise PoanError(
                "--sm is for --engine tensorrt-rtx; tensorrt builds for the GPU at hand"
            )
        for asked in (precision, *request.eight_bit):
            targets(asked, request.sm)


def eight_bit_entries(
    folder: Path,
    entries: Sequence[Json],
    cases: Sequence[Case],
    kinds: Sequence[Kind],
    report: Report,
) -> list[Json]:
    """Write ``model.int8.onnx`` or ``model.fp8.onnx``, but none that loses too much; entries."""
    return [
        entry for kind in kinds for entry in _eight_bit_entry(folder, entries, cases, kind, report)
    ]


def _eight_bit_entry(
    folder: Path, entries: Sequence[Json], cases: Sequence[Case], kind: Kind, report: Report
) -> list[Json]:
    """One 8-bit file, or none.

    It is the half-precision graph where there is one, else the fp32 one, with Q/DQ; the loss
    is measured with the fp32 graph.
    """
    source = _source(entries)
    full = next(entry for entry in entries if entry["precision"] == "fp32")
    models = {entry["precision"]: onnx.load(folder / entry["name"]) for entry in (full, source)}
    try:
        twins, loss = quantise_or_refuse(models, cases, kind)
    except QuantisationRefusedError as refusal:
        report(str(refusal))
        return []
    name = f"model.{kind}.onnx"
    content = twins[source["precision"]].SerializeToString(deterministic=True)
    (folder / name).write_bytes(content)
    report(
        f"{name}: {loss.mean_db:.3f} dB of PSNR lost against fp32 on {loss.tiles} tiles "
        f"(worst {loss.worst_db:.3f})"
    )
    check = {
        "file": name,
        "stage": "output",
        "case": f"{loss.tiles} real tiles",
        "metric": "psnr_loss_db",
        "value": loss.mean_db,
        "tolerance": MOST_LOSS_DB,
        "reason": "a loss that no table would show",
    }
    return [
        {
            "name": name,
            "kind": "onnx",
            "precision": kind,
            "islands": source["islands"],
            "sha256": sha256_of(folder / name),
            "parity": {"verdict": "pass", "checks": [check]},
        }
    ]


def calibration_cases(data: Path | None, tile: int, scale: int, method: Degradation) -> list[Case]:
    """Real LR tiles with their truth, from several slices of several scans."""
    cases: list[Case] = []
    for path in scan_paths(data)[:EIGHT_BIT_SCANS]:
        for hr in hr_tiles(path, scale * tile, TILES_PER_SCAN):
            cases.append(real_case(f"real {len(cases)}", hr, scale, method))
    return cases


def flavour_for(request: EngineRequest, report: Report) -> Flavour | None:
    """The flavour to build, and a line that says why; None where there is none to build."""
    if request.engine == "none":
        return None
    flavour, why = choose_flavour(request.engine)
    report(why if flavour is None else f"engine: {flavour}: {why}")
    return flavour


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanMaker:
    """Builds the plans of one export beside its ONNX files, in ``folder``.

    ``out`` is the name that the folder will have: a failed build leaves its log beside it.
    """

    folder: Path
    out: Path
    batch: Mapping[str, int]
    flavour: Flavour | None
    """None builds none."""
    sm: str | None
    report: Report

    def make(self, sources: Sequence[Json]) -> list[Json]:
        """The plans of some ONNX files, by their entries; entries for the manifest."""
        if self.flavour is None:
            return []
        return [
            self._one(source, self.flavour, sms)
            for source in sources
            for sms in self._targets(source["precision"])
        ]

    def _targets(self, precision: str) -> list[tuple[str, ...]]:
        return targets(precision, self.sm) if self.flavour == "tensorrt-rtx" else [()]

    def _one(self, source: Json, flavour: Flavour, sms: tuple[str, ...]) -> Json:
        precision = source["precision"]
        name = plan_name(sms)
        if precision in ("int8", "fp8"):
            name = name.replace("engine.", f"engine.{precision}.")
        order = Order(
            onnx=self.folder / source["name"],
            plan=self.folder / name,
            flavour=flavour,
            precision=precision,
            islands=tuple(source["islands"]),
            batch=BatchRange(**self.batch),
            sms=sms,
            log=self.out.with_name(f"{self.out.name}.{name}.log"),
        )
        built = build_plan(order)
        self.report(describe(name, built.compute_capabilities, built.report))
        return built.manifest_entry()


def describe(name: str, capabilities: Sequence[str], report: Mapping[str, Any]) -> str:
    """One line about a plan, from its build report."""
    memory = report["activation_bytes"]
    shown = "" if memory is None else f", {memory / 2**20:.0f} MiB of activations"
    fused = len(report["fused_attention"])
    return (
        f"{name}: {report['plan_bytes'] / 2**20:.1f} MiB for {', '.join(capabilities)}, "
        f"{report['layers']} layers, {fused} fused attention, built in "
        f"{report['build_s']:.1f} s{shown}"
    )


def finish(folder: Path, request: EngineRequest, report: Report) -> bool:
    """Judge the plans of a finished export; whether all that was asked for is there and good."""
    manifest = read_manifest(folder)
    names = [file.name for file in manifest.files if file.kind == "plan"]
    failed = gate_plans(folder, names, report)
    precisions = {file.precision for file in manifest.files}
    return not failed and set(request.eight_bit) <= precisions


def gate_plans(folder: Path, names: Sequence[str], report: Report) -> list[str]:
    """Run the stored vectors on each plan that this machine's GPU runs; names of those that fail.

    Elsewhere a plan stays pending, and the report says how to judge it.
    """
    capability, found = gpu_here()
    failed = []
    for name in names:
        model = find_model(folder / name, judged=False)
        if capability is None or not _runs_here(model, found, capability):
            report(
                f"{name}: parity pending ({found}); on the target: "
                f"poan-run --verify {folder / name}"
            )
            continue
        opened = open_backend(model, EngineOptions(device="cuda"))
        parity = write_verdict(folder, name, verify(model, opened.backend))
        report(f"{name}: parity {parity.verdict} on {opened.device}")
        if parity.verdict != "pass":
            failed.append(name)
    return failed


def _runs_here(model: Any, name: str, capability: str) -> bool:
    try:
        check_compute_capability(model, name, capability)
    except PoanError:
        return False
    return True


def _source(entries: Sequence[Json]) -> Json:
    """The ONNX entry that plans are built from."""
    return min(
        (e for e in entries if e["kind"] == "onnx" and e["precision"] in PREFERRED),
        key=lambda entry: PREFERRED.index(entry["precision"]),
    )
