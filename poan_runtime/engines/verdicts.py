"""A verdict on a GPU belongs to one file, engine, device and release of the engine.

Kernels differ between all of these, and with them the rounding: what PyTorch and a CPU agree on
says nothing about the GPU.
"""

from pathlib import Path

from poan_runtime.engines.precision import release
from poan_runtime.errors import PoanError
from poan_runtime.models.find import Model
from poan_runtime.models.manifest import DeviceVerdict


def gpu_verdict(model: Model, engine: str, device: str, version: str) -> DeviceVerdict | None:
    """What ``--verify`` found about this file with this engine on a GPU of this name."""
    key = (model.file.name, engine, device, release(version))
    return next(
        (
            found
            for found in model.manifest.device_verdicts
            if (found.file, found.engine, found.device, release(found.version)) == key
        ),
        None,
    )


def proven(model: Model, engine: str, device: str, version: str) -> bool:
    """Whether this machine's verdict on it is pass."""
    found = gpu_verdict(model, engine, device, version)
    return found is not None and found.parity.verdict == "pass"


def check_verdict(model: Model, engine: str, device: str, version: str) -> tuple[str, ...]:
    """A notice where nothing is known, PoanError where the verdict is fail."""
    found = gpu_verdict(model, engine, device, version)
    if found is None:
        return (
            f"{model.path.name}: not yet compared with PyTorch by {engine} {release(version)} on "
            f"{device}; {command(model.path, engine)} does it",
        )
    if found.parity.verdict == "fail":
        raise PoanError(
            f"{model.path}: its parity verdict with {engine} {release(version)} on {device} is "
            "fail; take --device cpu, or another precision"
        )
    return ()


def command(path: Path, engine: str) -> str:
    """What judges a file on this machine's GPU."""
    backend = "" if engine == "onnxruntime" else f" --backend {engine}"
    return f"poan-run --verify --device cuda{backend} {path}"
