"""`poan-run --explain`: the plan for a scan and its cost on this machine, without running it.

Counts come from the manifest (multiply-accumulates by part) and from the scan (tiles, constant
ones among them). Seconds come from a short timing here: two batches of the scan's own tiles
through the loaded engine, and a few slices through everything else with a network that repeats
voxels. A rate from a table would know neither the machine, nor the engine, nor the precision.
"""

import dataclasses
import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poan_runtime.engines.backend import Backend, spoken
from poan_runtime.files import WholeFile
from poan_runtime.geometry import Geometry, spacing
from poan_runtime.images.nifti.gzip import GzipWriter
from poan_runtime.images.source import Source
from poan_runtime.images.stored import to_stored
from poan_runtime.network import Network, Settings
from poan_runtime.report.memory import peak_memory_bytes
from poan_runtime.super_resolve import SuperResolution
from poan_runtime.tiles.air import Air
from poan_runtime.tiles.layout import Layout
from poan_runtime.tiles.run import Slab, SliceRunner, Timings

TIMED_BATCHES = 2
TIMED_SLICES = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """Tiles of a scan: all of them, those that must run, and some to time the engine with."""

    tiles: int
    to_run: int
    examples: NDArray[np.float32]
    """(batch, 1, tile, tile), divided by the intensity unit."""
    slices: list[Slab]
    """Some slices (n, h, w) from the middle, real values, of each matrix that the network sees."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explanation:
    """The plan and its predicted cost. Seconds are added up as though nothing ran beside anything
    else: on a CPU every stage wants the same cores."""

    geometry: Geometry
    layout: Layout
    network: Network
    counts: Counts
    volumes: int
    from_which_matrix: str | None
    """Why the output is not scale times the scan, of one that was zero-filled."""
    read_s: float
    tile_s: float
    slice_s: float
    load_s: float
    hr_slice_bytes: int
    peak_bytes: int

    @property
    def network_s(self) -> float:
        """Predicted seconds in the network."""
        return self.tile_s * self.counts.to_run * self.volumes

    @property
    def rest_s(self) -> float:
        """Predicted seconds of tiling, blending and writing."""
        return self.slice_s * self.geometry.slices * self.volumes

    @property
    def total_s(self) -> float:
        """Predicted seconds from the loaded program to the written file."""
        return self.load_s + self.read_s * self.volumes + self.network_s + self.rest_s


class RepeatVoxels(Backend):
    """A network that costs nothing: each LR voxel becomes s x s HR voxels."""

    def __init__(self, scale: int) -> None:
        self._scale = scale

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Backend.run`."""
        return batch.repeat(self._scale, axis=2).repeat(self._scale, axis=3)


def explain_scan(source: Source, network: Network, settings: Settings) -> Explanation:
    """Lay out a scan and time what its cost follows from; the first volume stands for all."""
    run = SuperResolution(source, network, settings)
    source, geometry, layout, network = run.source, run.geometry, run.layout, run.network
    looks = run.looks()
    start = time.perf_counter()
    unit = run.intensity(0).unit
    counts = count_tiles(looks, geometry, unit, run.air(0, unit), skip=settings.skip)
    read_s = time.perf_counter() - start
    layouts = [each for _, each in looks]
    slice_s = time_slices(counts.slices, layouts, source.dtype, unit)
    tile_s = time_tiles(network, settings, counts.examples)
    height, width = geometry.plane
    hr_slice_bytes = 4 * height * width * geometry.scale**2
    return Explanation(
        geometry=geometry,
        layout=layout,
        network=network,
        counts=counts,
        volumes=geometry.volumes,
        from_which_matrix=run.outcome().from_which_matrix,
        read_s=read_s,
        tile_s=tile_s,
        slice_s=slice_s,
        load_s=network.load_s,
        hr_slice_bytes=hr_slice_bytes,
        # beside what is held now: the slab that is run, the one that is written, and its voxels
        peak_bytes=peak_memory_bytes() + 3 * hr_slice_bytes * (layout.slab - len(counts.slices[0])),
    )


def count_tiles(
    looks: Sequence[tuple[Source, Layout]], geometry: Geometry, unit: float, air: Air, *, skip: bool
) -> Counts:
    """Count the tiles of the first volume as a run would: the runner itself tells.

    ``looks`` are as `SuperResolution.looks` gives them.
    """
    runners = [cheap_runner(each, skip=skip) for _, each in looks]
    layout = looks[0][1]
    slices, middle = geometry.slices, geometry.slices // 2
    to_run, examples = 0, [np.zeros((0, layout.tile, layout.tile), np.float32)]
    for start in range(0, slices, layout.slab):
        stop = min(start + layout.slab, slices)
        slabs = (source.read_slices(geometry.axis, start, stop) for source, _ in looks)
        counted = [one.count(slab, unit, air) for one, slab in zip(runners, slabs, strict=True)]
        to_run += sum(int(np.count_nonzero(tiles.to_run)) for tiles in counted)
        wanted = layout.batch - sum(map(len, examples))
        examples.append(runners[0].examples(counted[0], wanted))
    found = np.concatenate(examples)
    if not len(found):
        found = np.zeros((1, layout.tile, layout.tile), np.float32)
    chosen = found[np.arange(layout.batch) % len(found)]
    return Counts(
        tiles=slices * sum(each.tiles_per_slice for _, each in looks),
        to_run=to_run,
        examples=np.ascontiguousarray(chosen[:, None]),
        slices=[
            source.read_slices(geometry.axis, middle, min(middle + TIMED_SLICES, slices))
            for source, _ in looks
        ],
    )


def cheap_runner(layout: Layout, *, skip: bool) -> SliceRunner:
    """A runner whose network costs nothing."""
    backend = RepeatVoxels(layout.scale)
    return SliceRunner(backend=backend, layout=layout, skip=skip, timings=Timings())


def time_tiles(network: Network, settings: Settings, examples: NDArray[np.float32]) -> float:
    """Seconds per tile in the engine: the faster of two batches after one that warms it up."""
    backend = network.backend(settings)
    backend.run(examples)
    seconds = []
    for _ in range(TIMED_BATCHES):
        start = time.perf_counter()
        backend.run(examples)
        seconds.append(time.perf_counter() - start)
    return min(seconds) / len(examples)


def time_slices(
    slabs: Sequence[Slab], layouts: Sequence[Layout], dtype: np.dtype[Any], unit: float
) -> float:
    """Seconds per slice outside of the network: tiling, blending, rounding, compression."""
    start = time.perf_counter()
    fine, *_ = (
        cheap_runner(layout, skip=False).run(slab, unit)
        for slab, layout in zip(slabs, layouts, strict=True)
    )
    writer = GzipWriter(io.BytesIO())
    writer.write(to_stored(fine, dtype, 1.0, 0.0)[0].tobytes())
    writer.close()
    return (time.perf_counter() - start) / len(slabs[0])


def as_json(source: Source, found: Explanation) -> dict[str, Any]:
    """Everything that is known, for other programs."""
    network, plan = found.network, found.layout
    manifest, opened = network.model.manifest, network.opened
    return {
        "model": {"name": manifest.name, "file": network.model.path.name}
        | {"precision": network.model.file.precision, "sha256": network.model.file.sha256},
        "backend": {"name": opened.name, "version": opened.version}
        | {"device": opened.device, "reason": opened.reason},
        "scan": {"path": str(source.path), "shape": list(source.shape)},
        "slice_axis": found.geometry.axis,
        "from_which_matrix": found.from_which_matrix,
        "output": {
            "shape": list(found.geometry.fine_shape),
            "spacing": spacing(found.geometry.fine_affine).tolist(),
        },
        "plan": {
            "tile": plan.tile,
            "halo": plan.halo,
            "overlap": [plan.rows.overlap, plan.columns.overlap],
            "tiles_per_slice": plan.tiles_per_slice,
            "batch": plan.batch,
            "slices_per_slab": plan.slab,
            "work_on_overlap": overlap_share(plan),
        },
        "tiles": {"all": found.counts.tiles, "to_run": found.counts.to_run},
        "volumes": found.volumes,
        "gmac_per_tile": manifest.gmac_per_tile,
        "gmac_per_part": dict(manifest.gmac_per_part),
        "timed": {"tile_s": found.tile_s, "slice_s": found.slice_s},
        "predicted": {
            "load_s": found.load_s,
            "read_s": found.read_s * found.volumes,
            "network_s": found.network_s,
            "rest_s": found.rest_s,
            "total_s": found.total_s,
            "peak_bytes": found.peak_bytes,
        },
    }


def overlap_share(layout: Layout) -> float:
    """Share of the voxels that the network sees which it sees more than once, or as padding."""
    seen = layout.tiles_per_slice * layout.tile**2
    return 1 - layout.rows.extent * layout.columns.extent / seen


def as_text(document: dict[str, Any]) -> str:
    """The same in words, one fact a line."""
    model, backend, plan = document["model"], document["backend"], document["plan"]
    tiles, predicted = document["tiles"], document["predicted"]
    engine = f"{backend['name']} {backend['version']}"
    rows, columns = plan["overlap"]
    total, gmac = predicted["total_s"], document["gmac_per_tile"]
    batches = -(-tiles["to_run"] // plan["batch"])
    shape = " x ".join(map(str, document["scan"]["shape"]))
    fine = " x ".join(map(str, document["output"]["shape"]))
    voxel = " x ".join(f"{step:.3g}" for step in document["output"]["spacing"])
    lines = [
        f"model      {model['name']}, {model['file']} ({model['precision']})",
        f"engine     {spoken(engine, backend['device'])}",
        f"scan       {shape}, slices across axis {document['slice_axis']}",
        f"output     {fine}, voxels of {voxel} mm",
        *([f"matrix     {matrix}"] if (matrix := document["from_which_matrix"]) else []),
        f"tiles      {plan['tiles_per_slice']} per slice, {plan['tile']} x {plan['tile']}, halo "
        f"{plan['halo']}, overlap {rows} x {columns}: {plan['work_on_overlap']:.1%} of the work "
        "is on overlap and padding",
        f"to run     {tiles['to_run']} of {tiles['all']} tiles, {batches} batches of "
        f"{plan['batch']}, {plan['slices_per_slab']} slices at once"
        + (f", for each of {document['volumes']} volumes" if document["volumes"] > 1 else ""),
    ]
    if gmac:
        parts = ", ".join(f"{part} {n / gmac:.1%}" for part, n in document["gmac_per_part"].items())
        lines.append(f"work       {gmac:.3f} GMAC per tile" + (f": {parts}" if parts else ""))
    tile_s = document["timed"]["tile_s"]
    rate = f", {2 * gmac / tile_s:.0f} GFLOP/s" if gmac else ""
    return "\n".join(
        [
            *lines,
            f"timed      {1e3 * tile_s:.1f} ms per tile here{rate}",
            f"predicted  {total:.1f} s: load {predicted['load_s']:.1f}, read "
            f"{predicted['read_s']:.1f}, network {predicted['network_s']:.1f}, tiling, blending "
            f"and writing {predicted['rest_s']:.1f}; peak memory "
            f"{predicted['peak_bytes'] / 2**20:.0f} MiB",
        ]
    )


def write_json(path: Path, documents: list[dict[str, Any]]) -> None:
    """Write the explanations of all scans."""
    with WholeFile(path) as file:
        file.write(json.dumps({"scans": documents}, indent=1, allow_nan=False).encode() + b"\n")
