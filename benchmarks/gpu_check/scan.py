"""A whole scan by poan-run on the GPU: seconds, and the report's own account of them."""

import json
import tempfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from benchmarks.gpu_check.commands import failures, poan
from poan_runtime.models.find import shipped_models

SHAPE = (240, 240, 64)


def run() -> dict[str, Any]:
    """The first shipped model on seeded noise, cold and again with what the first run left."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "scan.nii"
        voxels = np.random.default_rng(0).integers(1, 1000, SHAPE).astype(np.int16)
        nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 3.0, 1.0])), source)
        steps = [one(source, Path(scratch) / f"{turn}.json") for turn in ("first", "second")]
    return {"shape": SHAPE, "steps": steps, "failed": failures(*steps)}


def one(source: Path, report: Path) -> dict[str, Any]:
    """One run and its report."""
    done = poan("run", shipped_models()[0], source, "--device", "cuda", "--report", report)
    if report.is_file():
        done["report"] = json.loads(report.read_text("utf-8"))
    return done
