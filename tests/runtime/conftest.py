"""Tiny networks with a manifest beside them, and tiny scans."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import onnx
import pytest
from hypothesis import settings
from numpy.typing import NDArray
from onnx import TensorProto, helper

settings.register_profile("unhurried", deadline=None, max_examples=60)
settings.load_profile("unhurried")  # a busy machine is no failure

MakeModel = Callable[..., Path]
MakeScan = Callable[..., Path]

SHARED = Path(__file__).resolve().parents[2].parent / "shared/data"


def nearest_nodes(scale: int) -> list[Any]:
    """Repeat each voxel ``scale`` times along both axes."""
    return [
        helper.make_node(
            "Resize",
            ["smooth", "", "scales"],
            ["sr"],
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
    ]


def graph(scale: int, tile: int, kernel: NDArray[np.float32]) -> Any:
    """A zero-padded 3x3 convolution, then nearest-neighbour up-sampling."""
    side = scale * tile
    nodes = [
        helper.make_node("Conv", ["lr", "kernel"], ["smooth"], pads=[1, 1, 1, 1]),
        *nearest_nodes(scale),
    ]
    inputs = [helper.make_tensor_value_info("lr", TensorProto.FLOAT, ["n", 1, tile, tile])]
    outputs = [helper.make_tensor_value_info("sr", TensorProto.FLOAT, ["n", 1, side, side])]
    constants = [
        helper.make_tensor("kernel", TensorProto.FLOAT, [1, 1, 3, 3], kernel.ravel()),
        helper.make_tensor("scales", TensorProto.FLOAT, [4], [1, 1, scale, scale]),
    ]
    made = helper.make_graph(nodes, "tiny", inputs, outputs, constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    onnx.checker.check_model(model)
    return model


def manifest(sha256: str, **changes: Any) -> dict[str, Any]:
    """A valid manifest of one ONNX file."""
    document: dict[str, Any] = {
        "manifest_version": 1,
        "name": "tiny_x2",
        "network": {"arch": "tiny", "parameters": 9, "config": {}},
        "scale": 2,
        "contrast": "T2",
        "tile": 16,
        "batch": {"min": 1, "opt": 8, "max": 32},
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
                "name": "model.onnx",
                "kind": "onnx",
                "precision": "fp32",
                "islands": [],
                "sha256": sha256,
            }
        ],
        "vectors": None,
        "relative_error_floor": 1e-6,
        "parity": {"verdict": "pass", "checks": []},
        "training": {},
        "created_by": {},
    }
    return document | changes


IDENTITY = np.float32([[0, 0, 0], [0, 1, 0], [0, 0, 0]])
SMOOTH = np.float32([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16


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

    def make(*, smooth: bool = False, **changes: Any) -> Path:
        folder = tmp_path_factory.mktemp("model")
        document = manifest("", **changes)
        model = graph(document["scale"], document["tile"], SMOOTH if smooth else IDENTITY)
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


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real scans; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the scans of {SHARED}")
    return SHARED
