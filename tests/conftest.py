"""What tests of several packages share: scans, tiny models, an export that holds a plan."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import onnx
import pytest
from hypothesis import settings
from numpy.typing import NDArray

from poan_runtime.engines.tensorrt.build.plan import BuiltPlan, build_plan, gpu_here
from tests.tiny.graphs import SCALE, TILE, answer, order_for, residual_graph, sha256
from tests.tiny.models import IDENTITY, SMOOTH, graph, manifest

settings.register_profile("unhurried", deadline=None, max_examples=60)
settings.load_profile("unhurried")  # a busy machine is no failure

MakeModel = Callable[..., Path]
MakeScan = Callable[..., Path]

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
SHARED = ROOT.parent / "shared/data"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """poan's cache folder is empty at the start of each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real scans beside the repository; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the scans of {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Compiles a C file to a library for LD_PRELOAD."""
    if sys.platform != "linux" or shutil.which("gcc") is None:
        pytest.skip("needs Linux and gcc")

    def compiled(source: Path) -> Path:
        out = tmp_path_factory.mktemp("shim") / "shim.so"
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", out, source, "-ldl"], check=True)
        return out

    return compiled


@pytest.fixture(scope="session")
def make_manifest() -> Callable[..., dict[str, Any]]:
    """A valid manifest, as the decoded JSON object; keywords replace fields."""
    return manifest


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """Write a tiny network and its manifest; keywords are manifest fields. Gives the folder.

    With ``smooth`` it blurs by a zero-padded 3x3 kernel first, so that a voxel's answer depends
    on its neighbours and the border of a tile is wrong; else it is nearest-neighbour alone.
    """

    def make(
        *, smooth: bool = False, kernel: NDArray[np.float32] | None = None, **changes: Any
    ) -> Path:
        folder = tmp_path_factory.mktemp("model")
        document = manifest("", **changes)
        if kernel is None:
            kernel = SMOOTH if smooth else IDENTITY
        model = graph(document["scale"], document["tile"], kernel)
        content = model.SerializeToString()
        (folder / "model.onnx").write_bytes(content)
        document["files"][0]["sha256"] = hashlib.sha256(content).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(document))
        return folder

    return make


@pytest.fixture(scope="session")
def nearest_x2(make_model: MakeModel) -> Path:
    """The folder of a network that repeats voxels, x2, tile 16."""
    return make_model()


@pytest.fixture
def make_scan(tmp_path: Path) -> MakeScan:
    """Write a seeded random scan; gives its path."""

    def make(
        name: str = "scan.nii.gz",
        shape: tuple[int, ...] = (20, 18, 5),
        dtype: str = "<i2",
        affine: NDArray[np.float64] | None = None,
        kind: Any = nib.Nifti1Image,
        data: NDArray[Any] | None = None,
    ) -> Path:
        if data is None:
            seeded = np.random.default_rng(len(shape))
            data = seeded.integers(1, 100, shape).astype(np.dtype(dtype).newbyteorder("="))
        affine = np.diag([0.9, 0.9, 4.0, 1.0]) if affine is None else affine
        header = kind.header_class(endianness=">" if dtype.startswith(">") else "<")
        header.set_data_dtype(np.dtype(dtype))
        path = tmp_path / name
        nib.save(kind(data, affine, header), path)
        return path

    return make


@pytest.fixture
def scan_folder(tmp_path: Path) -> Path:
    """Three subjects' volumes, 40x44x5, two T2 and one T1, of smooth seeded shapes."""
    folder = tmp_path / "scans"
    folder.mkdir()
    y, x = np.mgrid[:40, :44]
    rng = np.random.default_rng(1)
    for name in ("sub-1_T2w", "sub-2_T2w", "sub-3_T1w"):
        slices = np.zeros((40, 44, 5), np.int16)
        for z in range(5):
            for _ in range(6):
                cy, cx, r = rng.uniform(8, 32), rng.uniform(8, 36), rng.uniform(2, 9)
                inside = (y - cy) ** 2 + (x - cx) ** 2 < r**2
                slices[..., z][inside] = rng.integers(100, 900)
        affine = np.diag([1.0, 1.0, 4.0, 1.0])
        nib.save(nib.Nifti1Image(slices, affine), folder / f"{name}.nii.gz")
    return folder


@pytest.fixture(scope="session")
def tiny_export(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Checkpoint and folder of ``poan-export --fp16`` for the tiny network x2; not to be changed.

    Torch is imported here, so that tests of the runtime alone do not wait for it.
    """
    from poan_export.cli import main
    from poan_train.checkpoint import save_checkpoint
    from tests.tiny.networks import TILE, facts_of, tiny_network

    folder = tmp_path_factory.mktemp("export")
    path, network = folder / "tiny.pt", tiny_network()
    save_checkpoint(path, facts_of(network), network.state_dict())
    arguments = ["--ckpt", str(path), "--tile", str(TILE), "--fp16", "--engine", "none"]
    assert main([*arguments, "--halo", "1", "--overlap", "2"]) == 0
    return path, folder / "tiny"


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
        + [built.manifest_entry().json()],
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
