"""The report of a run as JSON: what ran, on what, for how long, and what to mind."""

import json
import platform
from pathlib import Path
from typing import Any

import numpy as np

from poan_runtime import geometry
from poan_runtime.extras import poan_version
from poan_runtime.files import WholeFile
from poan_runtime.images.source import Source
from poan_runtime.network import Network, Settings
from poan_runtime.report.memory import peak_memory_bytes
from poan_runtime.super_resolve import Outcome

VERSION = 1


def scan_report(
    source: Source,
    output: Path,
    settings: Settings,
    outcome: Outcome,
    total_s: float,
) -> dict[str, Any]:
    """The part of the report about one scan. Seconds of read and write overlap inference."""
    layout, lies, network = outcome.layout, outcome.geometry, outcome.network
    return {
        "input": {
            "path": str(source.path),
            "sha256": source.sha256(),
            **_geometry(source.shape, source.affine),
            "dtype": source.dtype.name,
        },
        "output": {"path": str(output), **_geometry(lies.fine_shape, lies.fine_affine)},
        "slice_axis": lies.axis,
        "intensity_scales": list(outcome.units),
        "plan": {
            "tile": layout.tile,
            "halo": layout.halo,
            "overlap": [layout.rows.overlap, layout.columns.overlap],
            "batch": layout.batch,
            "tiles_per_slice": layout.tiles_per_slice,
            "slices_per_slab": layout.slab,
            "self_ensemble": settings.self_ensemble or settings.uncertainty,
            "skip_constant_tiles": settings.skip,
            "skip_tiles_of_air": settings.skip and network.model.manifest.air_k is not None,
            **_tile_taken(network),
        },
        **_measured(outcome),
        **_uncertainty(outcome),
        "below_zero_made_zero": {
            "voxels": outcome.below_zero.count,
            "lowest": outcome.below_zero.lowest,
        },
        "tiles": {
            "run": outcome.timings.tiles_run,
            "skipped": outcome.timings.tiles_skipped,
            "of_air": outcome.timings.tiles_of_air,
        },
        "seconds": {
            "load_model": network.load_s,
            **dict(sorted(outcome.timings.seconds.items())),
            "scan_total": total_s,
        },
        "warnings": [*network.notices, *outcome.warnings],
    }


def _tile_taken(network: Network) -> dict[str, Any]:
    """Which file ran and why, where the model has plans for several tiles."""
    if not network.taken:
        return {}
    model = network.model
    return {"file": str(model.path), "sha256": model.file.sha256, "reason": network.taken}


def _measured(outcome: Outcome) -> dict[str, Any]:
    """What the scanner measured and what of it was changed; nothing where no rule tells."""
    found, change = outcome.measured, outcome.change
    if found is None or change is None:
        return {}
    return {
        "native": {
            "matrix": list(found.native.matrix),
            "native": list(found.native.native),
            "cutoffs": list(found.native.cutoffs),
            "reasons": list(found.native.reasons),
            "used": outcome.native_used,
            "share": outcome.native_share,
        },
        "faithfulness": {
            "changed_relative": change.relative,
            "changed_rms": change.rms,
            "noise_sigma": found.noise.sigma,
            "noise_from": found.noise.source,
            "measured_kept": outcome.measured_kept,
        },
    }


def _uncertainty(outcome: Outcome) -> dict[str, Any]:
    """Standard deviation over eight flips and rotations in tissue; nothing where nobody asked."""
    found = outcome.spread
    if found is None:
        return {}
    return {"uncertainty": {"mean": found.mean, "percentile_95": found.percentile(95)}}


def write_report(path: Path, network: Network, scans: list[dict[str, Any]]) -> None:
    """Write the report of a whole run."""
    model, opened = network.model, network.opened
    document = {
        "report_version": VERSION,
        "poan": poan_version(),
        "model": {
            "name": model.manifest.name,
            "file": str(model.path),
            "sha256": model.file.sha256,
            "precision": model.file.precision,
            "scale": model.manifest.scale,
            "contrast": model.manifest.contrast,
            "grid": model.manifest.grid,
            "parity": (model.file.parity or model.manifest.parity).verdict,
        },
        "backend": {
            "name": opened.name,
            "version": opened.version,
            "device": opened.device,
            "reason": opened.reason,
            "precision": opened.precision or model.file.precision,
        },
        "system": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "machine": platform.machine(),
            "system": platform.platform(),
            "peak_memory_bytes": peak_memory_bytes(),
        },
        "scans": scans,
    }
    with WholeFile(path) as file:
        file.write(json.dumps(document, indent=1, allow_nan=False).encode() + b"\n")


def _geometry(shape: tuple[int, ...], affine: geometry.Affine) -> dict[str, Any]:
    return {
        "shape": list(shape),
        "spacing": geometry.spacing(affine).tolist(),
        "affine": np.asarray(affine).tolist(),
    }
