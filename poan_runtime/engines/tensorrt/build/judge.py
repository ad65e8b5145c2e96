"""The gate of plans: the stored vectors, on the GPU that the plan is for."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from poan_runtime.engines.backend import EngineOptions, open_backend
from poan_runtime.engines.tensorrt.build.plan import find_gpu_here
from poan_runtime.engines.tensorrt.check import check_gpu
from poan_runtime.engines.verify import Inside, look, verify, write_gpu_verdict
from poan_runtime.errors import PoanError, Say
from poan_runtime.models.find import Model, find_model


def gate_plans(folder: Path, names: Sequence[str], say: Say) -> list[str]:
    """Run the stored vectors on each plan that this machine's GPU runs; names of those that fail.

    Elsewhere a plan stays pending, and the report says how to judge it. One engine is open at a
    time.
    """
    gpu, found = find_gpu_here()
    failed = []
    for name in names:
        model = find_model(folder / name, judged=False)
        if gpu is None or not _runs_on(model, gpu):
            say(
                f"{name}: parity pending ({found}); on the target: "
                f"poan-run --verify {folder / name}"
            )
            continue
        looked = look(model, inside_of(model))
        opened: Any = open_backend(model, EngineOptions(device="cuda"), judged=False)
        try:
            judged = verify(model, opened.backend, looked=looked)
        finally:
            opened.backend.close()
        parity = write_gpu_verdict(model, opened, judged)
        say(f"{name}: parity {parity.verdict} on {opened.device}")
        if parity.verdict != "pass":
            failed.append(name)
    return failed


def inside_of(model: Model, index: int | None = None) -> Inside | None:
    """What looks into a plan's engine; None for an ONNX file, which the exporter looked into."""
    if model.file.engine is None:
        return None
    from poan_runtime.engines.tensorrt.inside import look_inside

    return functools.partial(look_inside, model, index=index)


def _runs_on(model: Model, gpu: Any) -> bool:
    try:
        check_gpu(model, gpu)
    except PoanError:
        return False
    return True
