"""Tiny graphs with residual blocks, and orders for plans of them."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from poan_runtime.engines.tensorrt.build.plan import Order
from poan_runtime.models.manifest import BatchRange

TILE, SCALE, CHANNELS = 16, 2, 8
BATCH = BatchRange(min=1, opt=2, max=4)


def residual_graph(dtype: Any = np.float32, blocks: int = 2, seed: int = 0) -> onnx.ModelProto:
    """Head, residual blocks, tail and pixel shuffle, x2; float32 at both ends."""
    random = np.random.default_rng(seed)
    constants: list[Any] = []
    nodes: list[Any] = [helper.make_node("Cast", ["lr"], ["x"], to=_type(dtype))]

    def convolve(source: str, name: str, wide_in: int, wide_out: int) -> str:
        weight = random.normal(0, 0.5 / (3 * wide_in**0.5), (wide_out, wide_in, 3, 3))
        bias = random.normal(0, 0.1, wide_out)
        for part, value in (("weight", weight), ("bias", bias)):
            constants.append(numpy_helper.from_array(value.astype(dtype), f"{name}.{part}"))
        inputs = [source, f"{name}.weight", f"{name}.bias"]
        nodes.append(helper.make_node("Conv", inputs, [name], name=name, pads=[1] * 4))
        return name

    last = convolve("x", "head", 1, CHANNELS)
    for block in range(blocks):
        first = convolve(last, f"body.{block}.first", CHANNELS, CHANNELS)
        nodes.append(helper.make_node("Relu", [first], [f"{first}.relu"], name=f"{first}.relu"))
        second = convolve(f"{first}.relu", f"body.{block}.second", CHANNELS, CHANNELS)
        nodes.append(helper.make_node("Add", [second, last], [f"body.{block}"]))
        last = f"body.{block}"
    tail = convolve(last, "tail", CHANNELS, SCALE**2)
    shuffle = {"blocksize": SCALE, "mode": "CRD"}
    nodes.append(helper.make_node("DepthToSpace", [tail], ["fine"], **shuffle))
    nodes.append(helper.make_node("Cast", ["fine"], ["sr"], to=TensorProto.FLOAT))
    side = SCALE * TILE
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("lr", TensorProto.FLOAT, ["n", 1, TILE, TILE])],
        [helper.make_tensor_value_info("sr", TensorProto.FLOAT, ["n", 1, side, side])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    onnx.checker.check_model(model, full_check=True)
    return model


def _type(dtype: Any) -> int:
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def order_for(onnx_path: Path, **changes: Any) -> Order:
    """An order for a tensorrt-rtx plan beside an ONNX file."""
    settings: dict[str, Any] = {
        "onnx": onnx_path,
        "plan": onnx_path.with_name("engine.plan"),
        "flavour": "tensorrt-rtx",
        "precision": "fp16",
        "islands": (),
        "batch": BATCH,
        "sms": ("86", "89"),
    }
    return Order(**(settings | changes))


def answer(model: onnx.ModelProto, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
    """What ONNX Runtime answers on the CPU."""
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found: NDArray[np.float32] = session.run(None, {"lr": tiles})[0]
    return found


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
