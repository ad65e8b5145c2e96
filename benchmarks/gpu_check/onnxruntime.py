"""ONNX Runtime's CUDA provider: the stored vectors of each shipped model, then the latency."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.commands import bench, failures, poan
from poan_runtime.models.find import shipped_models


def run() -> dict[str, Any]:
    """Verdict and latency of each model on a copy of its folder, which takes the verdict."""
    steps = []
    with tempfile.TemporaryDirectory() as scratch:
        for shipped in shipped_models():
            folder = Path(shutil.copytree(shipped, Path(scratch) / shipped.name))
            options = ("--backend", "onnxruntime", "--device", "cuda")
            steps.append(poan("run", "--verify", folder / "model.onnx", *options))
            steps.append(bench(f"{folder}@onnxruntime", "--no-cold"))
    return {"steps": steps, "failed": failures(*steps)}
