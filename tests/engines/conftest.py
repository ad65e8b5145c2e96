"""Real tensorrt-rtx plans of tiny graphs, and exports that hold them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import onnx
import pytest

from poan_export.plans.build import BuiltPlan, build_plan, gpu_here
from tests.engines.tiny import SCALE, TILE, answer, order_for, residual_graph, sha256


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuiltPlan:
    """A real plan of the tiny graph in fp16, for SM86 and SM89."""
    path = tmp_path_factory.mktemp("built") / "model.fp16.onnx"
    onnx.save(residual_graph(np.float16), path)
    return build_plan(order_for(path))


@pytest.fixture
def folder(built: BuiltPlan, tmp_path: Path) -> Path:
    """An export of the tiny network: fp32 and fp16 ONNX, plan (parity pending), vectors."""
    out = tmp_path / "tiny_x2"
    out.mkdir()
    full = residual_graph()
    onnx.save(full, out / "model.onnx")
    for source in (built.order.onnx, built.order.plan):
        shutil.copy(source, out)
    tiles = np.random.default_rng(3).random((3, 1, TILE, TILE), np.float32)
    vectors = {"input_real_0": tiles, "output_real_0": answer(full, tiles)}
    np.savez(out / "vectors.npz", **vectors)
    document = {
        "manifest_version": 1,
        "name": "tiny_x2",
        "network": {"arch": "tiny", "parameters": 1, "config": {}},
        "scale": SCALE,
        "contrast": "T2",
        "tile": TILE,
        "batch": {"min": 1, "opt": 2, "max": 4},
        "halo": 1,
        "overlap": 2,
        "gmac_per_tile": 0.0,
        "intensity": {"rule": "percentile-nonzero", "percentile": 99.9},
        "grid": "centre",
        "square_root": {"scheme": "none"},
        "attention": {"form": "none"},
        "opset": 20,
        "inputs": {"name": "lr"},
        "outputs": {"name": "sr"},
        "files": [
            {
                "name": name,
                "kind": "onnx",
                "precision": precision,
                "islands": [],
                "sha256": sha256(out / name),
            }
            for name, precision in (("model.onnx", "fp32"), ("model.fp16.onnx", "fp16"))
        ]
        + [built.manifest_entry()],
        "vectors": {"name": "vectors.npz", "sha256": sha256(out / "vectors.npz")},
        "relative_error_floor": 1e-6,
        "parity": {"verdict": "pass", "checks": []},
        "training": {},
        "created_by": {},
    }
    (out / "manifest.json").write_text(json.dumps(document))
    return out


@pytest.fixture
def edit_manifest(folder: Path) -> Callable[[Callable[[dict[str, Any]], None]], None]:
    """Change the folder's manifest by a function of the decoded JSON."""

    def edit(change: Callable[[dict[str, Any]], None]) -> None:
        document = json.loads((folder / "manifest.json").read_text())
        change(document)
        (folder / "manifest.json").write_text(json.dumps(document))

    return edit


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A seeded scan of 20x18x3 voxels."""
    data = np.random.default_rng(5).integers(1, 100, (20, 18, 3)).astype(np.int16)
    nib.save(nib.Nifti1Image(data, np.diag([0.9, 0.9, 4.0, 1.0])), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


@pytest.fixture
def no_gpu() -> None:
    """Skips where there is a GPU."""
    capability, found = gpu_here()
    if capability is not None:
        pytest.skip(f"is about a machine without a GPU; this one has {found}")


@pytest.fixture
def gpu() -> str:
    """Compute capability of the GPU; skips without one."""
    capability, found = gpu_here()
    if capability is None:
        pytest.skip(f"needs an NVIDIA GPU ({found})")
    return capability
