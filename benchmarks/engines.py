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
WHOLE = ["lr", "sr"]
"""Input and output of a whole network; its parts have others."""
ROOT = ".z"
"""How the name of a matrix root's result ends."""
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
    if [value.name for value in (*model.graph.input, *model.graph.output)] == WHOLE:
        return whole_network(model, PRECISION[engine], cores)
    return part_of_network(model, engine.removeprefix("openvino-"), cores)


def whole_network(model: onnx.ModelProto, precision: str, cores: int) -> list[Run]:
    """The chains that `poan-run` compiles: covariances and roots stay in float32."""
    from poan_runtime.engines.openvino.library import core
    from poan_runtime.engines.openvino.pieces import compile_chains

    chains = compile_chains(
        core().read_model(model.SerializeToString()),
        tile=model.graph.input[0].type.tensor_type.shape.dim[-1].dim_value,
        precision=precision,
        float32_parts=root_parts(model),
        threads=cores,
    )
    return [chain_runner(chain) for chain in chains]


def part_of_network(model: onnx.ModelProto, hint: str, cores: int) -> list[Run]:
    """A piece of a graph compiled as `poan-run` compiles its pieces: a root in float32."""
    from poan_runtime.engines.openvino.library import core
    from poan_runtime.engines.openvino.pieces import settings

    roots = any(value.name.endswith(ROOT) for value in model.graph.output)
    graph = core().read_model(model.SerializeToString())
    compiled = core().compile_model(graph, "CPU", settings("f32" if roots else hint, cores))
    requests = [compiled.create_infer_request() for _ in range(cores)]
    return [request_runner(request) for request in requests]


def root_parts(model: onnx.ModelProto) -> list[tuple[str, str]]:
    """Features and z of each covariance pooling, by the exporter's names of its stages."""
    made = [name for node in model.graph.node for name in node.output]
    blocks = [name.removesuffix(ROOT) for name in made if name.endswith(ROOT)]
    return [
        (f"{block}.attention" if f"{block}.attention" in made else f"{block}.x", block + ROOT)
        for block in blocks
    ]


def chain_runner(chain: Callable[[np.ndarray], np.ndarray]) -> Run:
    return lambda feed: [chain(feed["lr"])]


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
