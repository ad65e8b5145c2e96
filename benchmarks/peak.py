"""What the machine can do: the fastest matrix product at hand in each precision, and a copy.

Several libraries are asked and the best answer counts, so that no network's rate is compared with
a slow library's peak. All cores take part. 2 n^3 operations for a product of n x n matrices.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from benchmarks.engines import CPU_ENGINES, PRECISION, load, seconds_per_tile

SIZES = (512, 1024, 2048)
GPU_SIZE = 8192
COPY_BYTES = 1 << 28


def rate(run: Callable[[], Any], operations: float, least_s: float) -> float:
    """The best of repeated runs over ``least_s``, in 1e9 operations per second."""
    run()
    best, start = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - start < least_s:
        begun = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - begun)
    return operations / best / 1e9


def cpu_peaks(
    least_s: float = 0.5, sizes: tuple[int, ...] = SIZES, cores: int = 2
) -> dict[str, dict[str, float]]:
    """GFLOP/s (GOP/s for int8) by precision and by library; ``copy`` in GB/s read plus written."""
    found: dict[str, dict[str, float]] = {"fp32": {}, "bf16": {}, "int8": {}}
    for n in sizes:
        for precision, library, run in products(n):
            gflops = rate(run, 2 * n**3, least_s)
            best = found[precision].get(library, 0.0)
            found[precision][library] = max(best, gflops)
        for engine in CPU_ENGINES:
            # as the network runs: each core multiplies a matrix of its own
            runs = load(engine, product_graph(matrix(n)), cores)
            seconds = seconds_per_tile(runs, {"a": matrix(n)}, least_s)
            best = found[PRECISION[engine]].get(f"{engine} by core", 0.0)
            gflops = 2 * n**3 / seconds / 1e9
            found[PRECISION[engine]][f"{engine} by core"] = max(best, gflops)
    source = np.ones(COPY_BYTES, np.uint8)
    target = np.empty_like(source)
    copied = rate(lambda: np.copyto(target, source), 2 * COPY_BYTES, least_s)
    return {**found, "copy": {"numpy": copied}}


def matrix(n: int) -> np.ndarray:
    """A random matrix (n, n), float32."""
    return np.random.default_rng(0).random((n, n), np.float32)


def products(n: int) -> list[tuple[str, str, Callable[[], Any]]]:
    """(precision, library, product of n x n matrices) for what runs here."""
    a, b = matrix(n), matrix(n)
    out = np.empty_like(a)
    ta, tb = torch.from_numpy(a), torch.from_numpy(b)
    ha, hb = ta.bfloat16(), tb.bfloat16()
    ia, ib = (torch.randint(-64, 64, (n, n), dtype=torch.int8) for _ in range(2))
    runs: list[tuple[str, str, Callable[[], Any]]] = [
        ("fp32", "numpy", lambda: np.matmul(a, b, out=out)),
        ("fp32", "torch", lambda: torch.mm(ta, tb)),
        ("bf16", "torch", lambda: torch.mm(ha, hb)),
        ("int8", "torch", lambda: torch._int_mm(ia, ib)),
    ]
    try:
        from poan_runtime.engines.openvino.library import core
    except ModuleNotFoundError:
        return runs
    for hint, precision in (("f32", "fp32"), ("bf16", "bf16")):
        model = core().read_model(product_graph(b).SerializeToString())
        settings = {"INFERENCE_PRECISION_HINT": hint}
        request = core().compile_model(model, "CPU", settings).create_infer_request()
        runs.append((precision, "openvino", lambda r=request: r.infer([a], share_inputs=True)))
    return runs


def product_graph(b: np.ndarray) -> onnx.ModelProto:
    """y = a b with a constant b, as the weights of a network are."""
    n = len(b)
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [n, n]) for name in "ay"]
    node = helper.make_node("MatMul", ["a", "b"], ["y"])
    weights = [numpy_helper.from_array(b, "b")]
    graph = helper.make_graph([node], "product", ports[:1], ports[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def gpu_peaks(least_s: float = 0.5) -> dict[str, dict[str, float]] | None:
    """fp16 product in GFLOP/s and device-to-device copy in GB/s; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    a, b = (torch.rand(GPU_SIZE, GPU_SIZE, device="cuda", dtype=torch.float16) for _ in range(2))
    source = torch.ones(4 * COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)

    def product() -> None:
        torch.mm(a, b)
        torch.cuda.synchronize()

    def copy() -> None:
        target.copy_(source)
        torch.cuda.synchronize()

    return {
        "fp16": {"torch": rate(product, 2 * GPU_SIZE**3, least_s)},
        "copy": {"torch": rate(copy, 2 * 4 * COPY_BYTES, least_s)},
    }
