"""A rewritten network as an ONNX graph: exported with its stages, slimmed, checked.

One graph is exported, with the inner stages as extra outputs: the *twin* that the gate runs. The
file to ship is the same graph without these outputs, so what was checked is what is shipped.
"""

import contextlib
import gc
import io
import logging
import warnings
from collections.abc import Iterator

import onnx
import onnxslim
import torch
from torch import nn

from poan_export.rewrite.network import refuse_forbidden
from poan_export.trace.stages import OUTPUT, Tapped, taps_of
from poan_runtime.errors import PoanError

INPUT_NAME, OUTPUT_NAME = "lr", "sr"
MOST_BATCH = 32
LEAST_OPSET = 20
FORBIDDEN_NODES = {
    "Col2Im": "TensorRT rejects it",
    "NonZero": "its output shape depends on the data",
    "Unique": "its output shape depends on the data",
    "Compress": "its output shape depends on the data",
    "If": "control flow",
    "Loop": "control flow",
    "Scan": "control flow",
    "Resize": "runtimes disagree on its coordinates",
    "Attention": "TensorRT has no decomposition of it for every shape",
}


def export_twin(network: nn.Module, tile: int, opset: int = LEAST_OPSET) -> onnx.ModelProto:
    """ONNX graph of ``network`` with one extra output per stage.

    (N, 1, tile, tile) -> (N, 1, s tile, s tile) in float32, N from 1 to 32. Raises PoanError
    naming the module that calls an operator no target runs.
    """
    tapped = Tapped(network, taps_of(network)).eval()
    example = torch.zeros(2, 1, tile, tile)
    batch = torch.export.Dim("batch", min=1, max=MOST_BATCH)
    try:
        with _quiet(), _no_collection(), torch.no_grad():
            program = torch.export.export(tapped, (example,), dynamic_shapes=({0: batch},))
            refuse_forbidden(program)
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME if name == OUTPUT else name for name in tapped.names],
                verbose=False,
            )
            assert exported is not None
            model: onnx.ModelProto = onnxslim.slim(exported.model_proto)
    finally:
        for handle in tapped.handles:
            handle.remove()
    _strip_notes(model)
    _name_batch(model)
    check(model)
    return model


def without_stages(twin: onnx.ModelProto) -> onnx.ModelProto:
    """The graph to ship: the twin with its first output alone."""
    model = onnx.ModelProto()
    model.CopyFrom(twin)
    del model.graph.output[1:]
    needed = {output.name for output in model.graph.output}
    kept = []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))
    unused = [tensor for tensor in model.graph.initializer if tensor.name not in needed]
    for tensor in unused:
        model.graph.initializer.remove(tensor)
    del model.graph.value_info[:]
    check(model)
    return model


def check(model: onnx.ModelProto) -> None:
    """Raise unless the graph is valid ONNX and holds nothing that a target rejects."""
    for node in model.graph.node:
        if node.op_type in FORBIDDEN_NODES:
            raise PoanError(
                f"the exported graph holds {node.op_type} ({node.name}): "
                f"{FORBIDDEN_NODES[node.op_type]}"
            )
        if node.op_type.startswith("Scatter"):
            raise PoanError(f"the exported graph holds {node.op_type} ({node.name})")
        if node.domain not in ("", "ai.onnx"):
            raise PoanError(f"the exported graph holds {node.domain}.{node.op_type}: not ONNX")
    onnx.checker.check_model(model, full_check=True)


def _name_batch(model: onnx.ModelProto) -> None:
    """Call the dynamic dimension ``batch``; the exporter gives it a symbol's name."""
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]


def _strip_notes(model: onnx.ModelProto) -> None:
    """Drop the exporter's notes: they hold paths of the machine that exported."""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        del value.metadata_props[:]
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    model.graph.doc_string = model.doc_string = ""


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """No search for reference cycles meanwhile.

    Tracing makes millions of objects and keeps them: each search walks over all of them again,
    which took up to a third of the time in a process that already held much.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's progress goes nowhere: its errors are exceptions."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
