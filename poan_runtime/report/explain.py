"""`poan-run --explain`: the plan for a scan and its cost on this machine, without running it.

Counts come from the manifest (multiply-accumulates by part) and from the scan (tiles, constant
ones among them). Seconds come from a short timing here: two batches of the scan's own tiles
through the loaded engine, and a few slices through everything else with a network that repeats
voxels. A rate from a table would know neither the machine, nor the engine, nor the precision.
"""

import dataclasses
import io
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poan_runtime import geometry
from poan_runtime.images.nifti.gzip import GzipWriter
from poan_runtime.images.nifti.read import Scan
from poan_runtime.images.nifti.write import to_stored
from poan_runtime.intensity import streamed_intensity_scale
from poan_runtime.network import Network, Settings
from poan_runtime.report.memory import peak_memory_bytes
from poan_runtime.tiles.layout import Plan
from poan_runtime.tiles.run import MOST_CONSTANTS, Slab, SliceRunner, Stages

TIMED_BATCHES = 2
TIMED_SLICES = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """Tiles of a scan: all of them, those that must run, and some to time the engine with."""

    tiles: int
    to_run: int
    examples: NDArray[np.float32]
    """(batch, 1, tile, tile), divided by the intensity scale."""
    slices: Slab
    """Some slices (n, h, w) from the middle, real values."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explanation:
    """The plan and its predicted cost. Seconds are added up as though nothing ran beside anything
    else: on a CPU every stage wants the same cores."""

    plan: Plan
    counts: Counts
    volumes: int
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
        return self.slice_s * (self.counts.tiles // self.plan.tiles_per_slice) * self.volumes

    @property
    def total_s(self) -> float:
        """Predicted seconds from the loaded program to the written file."""
        return self.load_s + self.read_s * self.volumes + self.network_s + self.rest_s


class RepeatVoxels:
    """A network that costs nothing: each LR voxel becomes s x s HR voxels."""

    def __init__(self, scale: int) -> None:
        self._scale = scale

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Backend.run`."""
        return batch.repeat(self._scale, axis=2).repeat(self._scale, axis=3)


def explain_scan(scan: Scan, network: Network, settings: Settings) -> Explanation:
    """Plan a scan and time what its cost follows from; the first volume stands for all."""
    header, manifest = scan.header, network.model.manifest
    axis = geometry.slice_axis(header.affine, header.shape, settings.axis)
    spatial = geometry.spatial_shape(header.shape)
    height, width = (spatial[other] for other in geometry.in_plane_axes(axis))
    plan = network.plan(height, width, spatial[axis], settings)
    start = time.perf_counter()
    unit = streamed_intensity_scale(
        lambda: (scan.read_slices(2, z, z + 1) for z in range(spatial[2])), manifest.percentile
    ).scale
    counts = count_tiles(scan, axis, spatial[axis], plan, unit, skip=settings.skip)
    read_s = time.perf_counter() - start
    slice_s = time_slices(counts.slices, plan, scan, unit)
    tile_s = time_tiles(network, settings, counts.examples)
    hr_slice_bytes = 4 * height * width * manifest.scale**2
    timed = min(TIMED_SLICES, spatial[axis])
    return Explanation(
        plan=plan,
        counts=counts,
        volumes=int(np.prod(header.shape[3:], dtype=np.int64)),
        read_s=read_s,
        tile_s=tile_s,
        slice_s=slice_s,
        load_s=network.load_s,
        hr_slice_bytes=hr_slice_bytes,
        # beside what is held now: the slab that is run, the one that is written, and its voxels
        peak_bytes=peak_memory_bytes() + 3 * hr_slice_bytes * (plan.slab - timed),
    )


def count_tiles(
    scan: Scan, axis: int, slices: int, plan: Plan, unit: float, *, skip: bool
) -> Counts:
    """Look at every tile of the first volume: constant ones run once for each value."""
    constants: set[float] = set()
    examples: list[Slab] = []
    varied, middle = 0, slices // 2
    for start in range(0, slices, plan.slab):
        slab = np.nan_to_num(scan.read_slices(axis, start, min(start + plan.slab, slices)))
        for top in plan.rows.starts:
            rows = plan.rows.index[top : top + plan.tile]
            for left in plan.columns.starts:
                columns = plan.columns.index[left : left + plan.tile]
                tiles = slab[:, rows][:, :, columns]  # (n, tile, tile)
                least, most = tiles.min(axis=(1, 2)), tiles.max(axis=(1, 2))
                same = (least == most) & skip
                constants |= {float(value) for value in least[same]}
                varied += int(np.count_nonzero(~same))
                examples += [*tiles[~same][: max(0, plan.batch - len(examples))]]
    total = slices * plan.tiles_per_slice
    if not examples:
        examples = [np.zeros((plan.tile, plan.tile), np.float32)]
    chosen = np.stack([examples[i % len(examples)] for i in range(plan.batch)]) / np.float32(unit)
    some = scan.read_slices(axis, middle, min(middle + TIMED_SLICES, slices))
    return Counts(
        tiles=total,
        to_run=min(total, varied + min(len(constants), MOST_CONSTANTS)),
        examples=np.ascontiguousarray(chosen[:, None], np.float32),
        slices=np.array(some, np.float32),
    )


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


def time_slices(slices: Slab, plan: Plan, scan: Scan, unit: float) -> float:
    """Seconds per slice outside of the network: tiling, blending, rounding, compression."""
    header = scan.header
    runner = SliceRunner(backend=RepeatVoxels(plan.scale), plan=plan, skip=False, stages=Stages())
    start = time.perf_counter()
    fine = runner.run(slices, unit, lambda count: None)
    writer = GzipWriter(io.BytesIO())
    writer.write(to_stored(fine, header.dtype, header.slope, header.inter)[0].tobytes())
    writer.close()
    return (time.perf_counter() - start) / len(slices)


def as_json(network: Network, scan: Scan, found: Explanation) -> dict[str, Any]:
    """Everything that is known, for other programs."""
    manifest, plan, opened = network.model.manifest, found.plan, network.opened
    return {
        "model": {"name": manifest.name, "file": network.model.path.name}
        | {"precision": network.model.file.precision, "sha256": network.model.file.sha256},
        "backend": {"name": opened.name, "version": opened.version}
        | {"device": opened.device, "reason": opened.reason},
        "scan": {"path": str(scan.path), "shape": list(scan.header.shape)},
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


def overlap_share(plan: Plan) -> float:
    """Share of the voxels that the network sees which it sees more than once, or as padding."""
    seen = plan.tiles_per_slice * plan.tile**2
    return 1 - plan.rows.extent * plan.columns.extent / seen


def as_text(document: dict[str, Any]) -> str:
    """The same in words, one fact a line."""
    model, backend, plan = document["model"], document["backend"], document["plan"]
    tiles, predicted = document["tiles"], document["predicted"]
    rows, columns = plan["overlap"]
    total, gmac = predicted["total_s"], document["gmac_per_tile"]
    batches = -(-tiles["to_run"] // plan["batch"])
    shape = " x ".join(map(str, document["scan"]["shape"]))
    lines = [
        f"model      {model['name']}, {model['file']} ({model['precision']})",
        f"engine     {backend['name']} {backend['version']} on {backend['device']}: "
        f"{backend['reason']}",
        f"scan       {shape}",
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
    import json

    from poan_runtime.images.nifti.write import WholeFile

    with WholeFile(path) as file:
        file.write(json.dumps({"scans": documents}, indent=1, allow_nan=False).encode() + b"\n")
