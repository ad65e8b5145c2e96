"""What a builder's verbose log tells about the plan: layers, fused attention, memory."""

import math
import re
from collections.abc import Iterable
from typing import Any

LAYER = re.compile(r"^Name: (?P<name>[^,]+), LayerType: (?P<kind>[^,]+),", re.MULTILINE)
ONNX_NAMES = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
CANDIDATE = re.compile(r"Found (\S+) to be part of self-attention pattern")
PORTS = re.compile(r"(?:Inputs|Outputs): \[ (.*?) \}\]")
TENSOR = re.compile(r"Name: (\S+), Dimensions: \[([-\d,]*)\].*?Datatype: (\w+)")
WIDTHS = {"Float": 4, "Half": 2, "BFloat16": 2, "FP8": 1, "Int8": 1}
WIDTHS |= {"Int32": 4, "Int64": 8, "Bool": 1}
"""Bytes of a value."""
NOT_WORK = {"signal", "wait", "shape_call"}
"""Layers that order work or compute shapes, and do no arithmetic."""


def read_build_log(log: str) -> dict[str, Any]:
    """Figures from the log of a builder with detailed verbosity.

    ``attention`` has an entry for each node that the builder saw in a matmul-softmax-matmul
    pattern, and whether it became part of a fused kernel; ``fused_attention`` lists those
    kernels. ``bytes_moved`` is what all layers read and write, weights apart: on a GPU it is what
    the time goes by. A figure that the log does not have is None; of a plan for several batches
    it has no bytes moved.
    """
    layers = [
        (match["name"], match["kind"], log[match.start() : log.find("\n", match.start())])
        for match in LAYER.finditer(log)
    ]
    fused = [(name, line) for name, _, line in layers if "mha" in name]
    inside = {name for _, line in fused for name in ONNX_NAMES.findall(line)}
    candidates = list(dict.fromkeys(CANDIDATE.findall(log)))
    kinds: dict[str, int] = {}
    for _, kind, _ in layers:
        kinds[kind] = kinds.get(kind, 0) + 1
    return {
        "layers": sum(count for kind, count in kinds.items() if kind not in NOT_WORK),
        "layer_kinds": dict(sorted(kinds.items())),
        "bytes_moved": _sum(bytes_of(line) for _, kind, line in layers if kind not in NOT_WORK),
        "fused_attention": [name for name, _ in fused],
        "attention": {name: name in inside for name in candidates},
        "activation_bytes": _figure(log, r"Total Activation Memory: (\d+) bytes"),
        "weights_bytes": _figure(log, r"Total Weights Memory: (\d+) bytes"),
        "engine_generation_s": _seconds(log),
        "warnings": re.findall(r"^\[WARNING\] (.+)$", log, re.MULTILINE)[:20],
    }


def _sum(parts: Iterable[int | None]) -> int | None:
    """None where any part is."""
    known = list(parts)
    return None if None in known else sum(filter(None, known))


def bytes_of(layer: str) -> int | None:
    """What one layer reads and writes, by its line in the log; constants are not counted.

    A tensor that a kernel reads in two patterns counts once. None where an extent varies (-1).

    >>> bytes_of(
    ...     "Inputs: [ { Name: a, Dimensions: [8,2,3], Datatype: Half }], Constants: [ { Name: w, "
    ...     "Dimensions: [99], Datatype: Float }], Outputs: [ { Name: b, Dimensions: [4], "
    ...     "Datatype: Float }], StreamId: 0"
    ... )
    112
    """
    tensors = {found for ports in PORTS.findall(layer) for found in TENSOR.findall(ports + " ")}
    return _sum(
        None if "-" in shape else WIDTHS[kind] * math.prod(map(int, filter(None, shape.split(","))))
        for _, shape, kind in tensors
    )


def _figure(log: str, pattern: str) -> int | None:
    found = re.findall(pattern, log)
    return int(found[-1]) if found else None


def _seconds(log: str) -> float | None:
    found = re.findall(r"Engine generation completed in ([\d.]+) seconds", log)
    return float(found[-1]) if found else None
