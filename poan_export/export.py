"""poan-export, top to bottom: checkpoint in, folder with models, vectors and manifest out."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from poan_export.gate.parity import (
    RELATIVE_ERROR_FLOOR,
    Gate,
    run_torch,
    time_onnx,
)
from poan_export.gate.quality import Quality, quality_of, refuse_worse
from poan_export.gate.real_tiles import REAL_TILES, Scans
from poan_export.gate.spectrum import Choice, candidates, choose
from poan_export.graphs import Written, write_eight_bit, write_graphs
from poan_export.package import (
    created_by,
    earlier_export,
    whole_folder,
    write_manifest,
    write_vectors,
)
from poan_export.plans.fit_network import fit_network
from poan_export.plans.make import (
    Chosen,
    PlanMaker,
    check_request,
)
from poan_export.plans.vram import Fit
from poan_export.precision.islands import default_islands, in_half
from poan_export.request import Request, opset_of
from poan_export.rewrite.attention import FORMS, Form, MergedSpatial
from poan_export.rewrite.network import rewrite, rules_for
from poan_export.rewrite.root import Scheme
from poan_export.trace.cost import gmac_per_part
from poan_export.trace.onnx_export import (
    INPUT_NAME,
    MOST_BATCH,
    OUTPUT_NAME,
    export_twin,
    without_stages,
)
from poan_export.trace.stages import pools_of
from poan_runtime.commands.say import Voice
from poan_runtime.engines.tensorrt.library import Flavour
from poan_runtime.errors import PoanError, Say
from poan_runtime.geometry import Grid
from poan_runtime.models.manifest import (
    VERSION,
    Attention,
    BatchRange,
    Intensity,
    Manifest,
    MatrixRoot,
    NetworkFacts,
    NoRoot,
    OtherTile,
    Parity,
    Port,
    Vectors,
)
from poan_runtime.signal.noise import AIR_K
from poan_train.checkpoint import Facts, load_network
from poan_train.degrade import GRID
from poan_train.networks import ARCHITECTURES

BATCH = BatchRange(min=1, opt=8, max=MOST_BATCH)


@dataclass(frozen=True, kw_only=True)
class Size:
    """Tile, halo and overlap in LR voxels, and the batches that the engines take."""

    tile: int
    halo: int
    overlap: int
    batch: BatchRange


def export(request: Request, say: Say) -> Path:
    """Export a checkpoint; the folder written.

    Each of the request's other tiles is a whole export of its own, behind the same gates, in a
    folder within. Raises PoanError for what the user can mend, and ParityFailure or
    WorseThanInterpolation where a gate fails; then nothing is written.
    """
    network, facts = load_network(request.ckpt)
    chosen = check_request(request.engine, request.half or "fp32", trained=trained(facts))
    first, *more = one_for_each_tile(request)
    sizes = [size_of(network, facts, one, chosen, say) for one in (first, *more)]
    out = request.out or request.ckpt.with_suffix("")
    if request.engine.engine != "none":
        say(str(chosen))
    if (earlier := earlier_export(out)) is not None:
        say(f"replaces the export of {earlier} in {out}, once the new one is whole")
    with whole_folder(out) as folder:
        job = Job(out=out, network=network, facts=facts, flavour=chosen.flavour, say=say)
        manifest = job.fill(folder, first, sizes[0])
        others = []
        for one, size in zip(more, sizes[1:], strict=True):
            inner = folder / f"tile{size.tile}"
            inner.mkdir()
            say(f"tile {size.tile}, in {inner.name}:")
            write_manifest(inner, job.fill(inner, one, size))
            others.append(OtherTile(folder=inner.name, tile=size.tile))
        write_manifest(folder, replace(manifest, other_tiles=tuple(others)))
    return out


def one_for_each_tile(request: Request) -> list[Request]:
    """The request for each of its tiles, the first being the one that every engine runs."""
    if request.vram is not None and request.other_tiles:
        raise PoanError("--vram fits one engine, and several tiles have one each; name one --tile")
    alone = replace(request, other_tiles=())
    return [alone, *(replace(alone, tile=tile) for tile in request.other_tiles)]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A checkpoint on its way to the folder that will be called ``out``."""

    out: Path
    network: nn.Module
    facts: Facts
    flavour: Flavour | None
    say: Say

    def fill(self, folder: Path, request: Request, size: Size) -> Manifest:
        """Write models and vectors for one tile; the manifest that is to stand beside them."""
        network, facts, say = self.network, self.facts, self.say
        scans = Scans(request.parity_data, size.tile, facts.scale, facts.degradation)
        gate = open_gate(network, facts, scans)
        say(f"reference computed on {len(gate.cases.items)} tiles ({gate.cases.source})")
        quality = judge_quality(network, facts, scans, request, say)
        choice = choose_root(network, gate, request)
        if choice is not None:
            say(describe(choice))
        shipped = rewritten(network, choice, request, size.tile)
        plans = PlanMaker(
            folder=folder,
            out=self.out,
            batch=size.batch,
            flavour=self.flavour,
            sm=request.engine.sm,
            say=say,
        )
        written = write_graphs(shipped.module, gate, request, plans, scans)
        if request.engine.eight_bit:
            written += write_eight_bit(written.files, gate, request, plans, scans)
        vectors = write_vectors(folder, gate)
        opset, name = opset_of(request), self.out.name
        manifest = manifest_of(name, network, facts, size, shipped, written, vectors, opset)
        return replace(manifest, gains=gains_of(facts, quality))


def judge_quality(
    network: nn.Module, facts: Facts, scans: Scans, request: Request, say: Say
) -> Quality | None:
    """How the network compares with interpolation; None for one that was never trained.

    Raises WorseThanInterpolation where it loses and that was not allowed.
    """
    if not trained(facts):
        return None
    quality = quality_of(
        network,
        scans.truths,
        scale=facts.scale,
        grid=grid_of(facts),
        metrics=facts.metrics,
        own_tiles=request.parity_data is not None,
    )
    refuse_worse(quality, allowed=request.allow_worse)
    say(str(quality))
    if quality.shortfall:
        Voice("poan-export").warn(quality.shortfall)
    return quality


def gains_of(facts: Facts, quality: Quality | None) -> dict[str, float]:
    """The manifest's gains: on the kind of LR that the network was trained for."""
    if quality is None:
        return {}
    return {str(facts.degradation.get("method", "bicubic")): round(quality.gain, 3)}


@dataclass(frozen=True, kw_only=True)
class Rewritten:
    """The network as it is exported, the form of its attention and the choice of its root."""

    module: nn.Module
    form: Form
    choice: Choice | None


def rewritten(network: nn.Module, choice: Choice | None, request: Request, tile: int) -> Rewritten:
    """Rewrite the network with the chosen root and the form of attention asked for."""
    scheme = choice.scheme if choice else Scheme(name="quintic", iterations=7)
    form = request.attention
    if form == "auto":
        form = fastest_form(network, scheme, tile, opset_of(request))
    module = rewrite(network, rules_for(scheme, form))
    return Rewritten(module=module, form=form, choice=choice)


def manifest_of(
    name: str,
    network: nn.Module,
    facts: Facts,
    size: Size,
    shipped: Rewritten,
    written: Written,
    vectors: Vectors,
    opset: int,
) -> Manifest:
    """What the manifest says of an export."""
    parts = gmac_per_part(shipped.module, size.tile)
    parameters = sum(p.numel() for p in network.parameters())
    return Manifest(
        manifest_version=VERSION,
        name=name,
        network=NetworkFacts(arch=facts.arch, parameters=parameters, config=facts.network),
        scale=facts.scale,
        contrast=facts.contrast,
        tile=size.tile,
        batch=size.batch,
        halo=size.halo,
        overlap=size.overlap,
        gmac_per_tile=round(sum(parts.values()), 3),
        gmac_per_part=parts,
        intensity=Intensity(**facts.intensity),
        grid=grid_of(facts),
        square_root=square_root_entry(network, shipped.choice),
        attention=Attention(form=attention_form(shipped.module, shipped.form)),
        opset=opset,
        inputs=Port(name=INPUT_NAME),
        outputs=Port(name=OUTPUT_NAME),
        files=written.files,
        vectors=vectors,
        relative_error_floor=RELATIVE_ERROR_FLOOR,
        parity=Parity.of(written.checks),
        cpu_precisions=written.on_cpus,
        training={**facts.training, "metrics": facts.metrics},
        created_by=created_by(),
        degradation=facts.degradation,
        air_k=AIR_K,
        data_licence=facts.training.get("licence") or None,
    )


def size_of(network: nn.Module, facts: Facts, request: Request, chosen: Chosen, say: Say) -> Size:
    """The sizes that were asked for; else those that fit ``vram``; else the architecture's own."""
    own = ARCHITECTURES[facts.arch]
    tile, batch = request.tile or own.tile, BATCH
    if request.vram is not None:
        found = fit_vram(network, facts, request, request.vram, chosen, say)
        tile, batch = found.tile, found.batch
    halo = own.halo if request.halo is None else request.halo
    overlap = own.overlap if request.overlap is None else request.overlap
    if (needed := 2 * halo + overlap) >= tile:
        raise PoanError(f"tile {tile} is too small: need more than 2 * halo + overlap = {needed}")
    return Size(tile=tile, halo=halo, overlap=overlap, batch=batch)


def fit_vram(
    network: nn.Module, facts: Facts, request: Request, vram: int, chosen: Chosen, say: Say
) -> Fit:
    """The largest tile and batch whose engine takes at most ``vram`` bytes of the device."""
    if chosen.flavour is None:
        raise PoanError(f"--vram measures plans, and none can be built: {chosen.why}")
    form = "box" if request.attention == "auto" else request.attention
    # neither the root's iteration nor its count matters for the memory
    exported = rewrite(network, rules_for(Scheme(name="quintic", iterations=7), form))
    if request.half is not None:
        exported = in_half(exported, request.half, default_islands(exported, request.half))
    found = fit_network(
        exported,
        scale=facts.scale,
        vram=vram,
        precision=request.half or "fp32",
        flavour=chosen.flavour,
        sm=request.engine.sm,
        opset=opset_of(request),
        tile=request.tile,
        say=say,
    )
    say(
        f"--vram: tile {found.tile}, batch up to {found.batch.max}: "
        f"{found.device_bytes / 2**20:.0f} MiB on the device"
    )
    return found


def open_gate(network: nn.Module, facts: Facts, scans: Scans) -> Gate:
    """The tiles, and the trained network's answers to them in float64 and float32."""
    cases = scans.gate_cases()
    return Gate(
        cases=cases,
        network=network,
        reference=run_torch(network, cases.batch, torch.float64),
        float32=run_torch(network, cases.batch, torch.float32),
        trained=trained(facts),
    )


def trained(facts: Facts) -> bool:
    """Whether the checkpoint's weights have been trained at all."""
    return bool(facts.training.get("steps"))


def choose_root(network: nn.Module, gate: Gate, request: Request) -> Choice | None:
    """The iteration for this checkpoint, or the one that was asked for; None without NCAB."""
    if not pools_of(network):
        return None
    root = request.root
    schemes = candidates(root)
    if request.iterations is not None:
        schemes = [Scheme(name=root or "newton-schulz", iterations=request.iterations)]
    return choose(network, gate.reference, gate.float32, REAL_TILES, schemes)


def fastest_form(network: nn.Module, scheme: Scheme, tile: int, opset: int) -> Form:
    """The form of the attention that ONNX Runtime runs fastest on this machine, for one tile."""
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


def square_root_entry(network: nn.Module, choice: Choice | None) -> NoRoot | MatrixRoot:
    """What the manifest says about the matrix root."""
    if choice is None:
        return NoRoot(scheme="none")
    _, pool = next(iter(pools_of(network).values()))
    return MatrixRoot(
        scheme=choice.scheme.name,
        iterations=choice.scheme.iterations,
        eps=pool.eps,
        floor=pool.floor,
        condition_seen=choice.condition_seen,
    )


def attention_form(network: nn.Module, form: Form) -> Form | Literal["none"]:
    """The form of the patch attention; none where the network has no patch attention."""
    has = any(isinstance(m, MergedSpatial) and len(m.levels) for m in network.modules())
    return form if has else "none"


def grid_of(facts: Facts) -> Grid:
    """On which grid the LR that the network was trained on lies; PoanError for unknown LR."""
    method = facts.degradation.get("method", "bicubic")
    if method not in GRID:
        raise PoanError(f"the checkpoint's LR model: expected {', '.join(GRID)}, got {method}")
    return GRID[method]


def to_stderr(line: str) -> None:
    Voice("poan-export").error(line)
