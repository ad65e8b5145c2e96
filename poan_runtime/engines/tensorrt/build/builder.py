"""The builder, run as a process of its own with the path of an order (JSON) as its argument.

A builder may end with a segmentation fault; as a process of its own it takes nobody with it.
The order says what to build (see `engines.Order`). The library's whole log goes to standard
output, one line per message, flushed at once, so that its end survives a crash.
"""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from poan_runtime.engines.tensorrt.library import MODULES, load_library
from poan_runtime.errors import PoanError
from poan_runtime.files import WholeFile


def build(order: dict[str, Any]) -> None:
    """Build the plan that the order describes and write it to ``order["plan"]``."""
    library = load_library(order["flavour"])
    trt: Any = library.api

    class Prints(trt.ILogger):  # type: ignore[misc]
        """Writes the builder's log to standard output."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            os.write(1, f"[{severity.name}] {message}\n".encode())

    logger = Prints()
    builder = trt.Builder(logger)
    network = builder.create_network(_strongly_typed(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(order["onnx"]):
        errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise PoanError(f"{order['onnx']}: {order['flavour']} cannot read it: {'; '.join(errors)}")
    _mark_outputs(trt, network, order.get("outputs", []))
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 islands are to be fp32
    if order["sms"]:
        config.num_compute_capabilities = len(order["sms"])
        for index, sm in enumerate(order["sms"]):
            target = getattr(trt.ComputeCapability, f"SM{sm}")
            if not config.set_compute_capability(target, index):
                raise PoanError(f"--sm: {order['flavour']} does not build for SM{sm}")
    _add_profile(builder, network, config, order["batch"])
    timings = _timing_cache(config, order["timing_cache"])
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise PoanError(f"{order['onnx']}: {order['flavour']} cannot build it")
    _write(order["plan"], plan)
    facts = {"version": library.version, "builder_flags": _flags(trt, config)}
    Path(order["facts"]).write_text(json.dumps(facts), "utf-8")
    if timings is not None:
        with contextlib.suppress(PoanError):  # the next build is slower, and nothing else is lost
            _write(order["timing_cache"], config.get_timing_cache().serialize())


def _mark_outputs(trt: Any, network: Any, names: list[str]) -> None:
    """Let inner tensors come out as float32, beside the network's own output."""
    tensors = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        for port in range(layer.num_outputs):
            tensors[layer.get_output(port).name] = layer.get_output(port)
    for name in names:
        if name not in tensors:
            raise PoanError(f"the graph has no tensor {name!r} to look at")
        tensors[name].name = f"{name} inside"
        out = network.add_cast(tensors[name], trt.float32).get_output(0)
        out.name = name
        network.mark_output(out)


def _write(path: str, memory: Any) -> None:
    with WholeFile(Path(path)) as file:
        file.write(bytes(memory))


def _flags(trt: Any, config: Any) -> list[str]:
    """Names of the builder's flags that are set."""
    members = trt.BuilderFlag.__members__
    return sorted(name for name, flag in members.items() if config.get_flag(flag))


def _strongly_typed(trt: Any) -> int:
    """The flag that TensorRT 10 needs and 11 takes for granted."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _add_profile(builder: Any, network: Any, config: Any, batch: dict[str, int]) -> None:
    """One profile: the batch is dynamic, all else is as the graph says."""
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        port = network.get_input(index)
        rest = tuple(port.shape)[1:]
        profile.set_shape(port.name, *((batch[key], *rest) for key in ("min", "opt", "max")))
    config.add_optimization_profile(profile)


def _timing_cache(config: Any, path: str | None) -> Any:
    """Timings of earlier builds on this GPU, for `tensorrt`; the others have no use for them."""
    if path is None:
        return None
    known = Path(path).read_bytes() if Path(path).is_file() else b""
    timings = config.create_timing_cache(known)
    config.set_timing_cache(timings, ignore_mismatch=False)
    return timings


def main() -> int:
    order = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    assert order["flavour"] in MODULES, order
    try:
        build(order)
    except PoanError as error:
        Path(order["error"]).write_text(str(error), "utf-8")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
