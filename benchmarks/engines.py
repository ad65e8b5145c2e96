"""Graphs in engines as `poan-run` uses them on a CPU: one tile to each core, one thread each."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx

from poan_runtime.errors import PoanError

Feed = Mapping[str, np.ndarray]
Run = Callable[[Feed], Any]
CPU_ENGINES = ("onnxruntime-fp32", "openvino-f32", "openvino-bf16")
PRECISION = {"onnxruntime-fp32": "fp32", "openvino-f32": "fp32", "openvino-bf16": "bf16"}


def load(engine: str, model: onnx.ModelProto, cores: int) -> list[Run]:
    """What runs one tile, once for each core; each must be called by one thread at a time."""
    content = model.SerializeToString()
    if engine.startswith("onnxruntime"):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        providers = ["CPUExecutionProvider"]
        if engine == "onnxruntime-cuda":
            providers = ["CUDAExecutionProvider", *providers]
        session = onnxruntime.InferenceSession(content, options, providers=providers)
        return [lambda feed: session.run(None, dict(feed))] * cores
    if not engine.startswith("openvino-"):
        raise PoanError(f"expected one of {', '.join(CPU_ENGINES)}, got {engine}")
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": engine.removeprefix("openvino-"),
        "NUM_STREAMS": cores,
        "INFERENCE_NUM_THREADS": cores,
    }
    compiled = core.compile_model(core.read_model(content), "CPU", settings)
    requests = [compiled.create_infer_request() for _ in range(cores)]
    return [request_runner(request) for request in requests]


def request_runner(request: Any) -> Run:
    return lambda feed: request.infer(dict(feed), share_inputs=True)


def seconds_per_tile(runs: list[Run], feed: Feed, least_s: float) -> float:
    """Seconds per tile with every core on a tile of its own, over at least ``least_s``."""
    for run in runs:  # one after the other: OpenVINO's first calls can wait for each other
        run(feed)
    with ThreadPoolExecutor(len(runs)) as pool:
        rounds, start = 0, time.perf_counter()
        while rounds == 0 or time.perf_counter() - start < least_s:
            list(pool.map(lambda run: run(feed), runs))
            rounds += 1
        return (time.perf_counter() - start) / (rounds * len(runs))
