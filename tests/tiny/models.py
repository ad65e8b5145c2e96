"""Tiny networks without weights to train, and a manifest for them."""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper


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
