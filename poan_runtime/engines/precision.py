"""Whether a CPU may run a float32 file in bf16: only by a verdict in the manifest.

bf16 has twice the rate of float32 on CPUs that have it, and half the memory traffic. It is the
default where it is proven: the exporter compared it with PyTorch on real tiles, and it lost at
most 0.01 dB against the truth. Without that verdict the answer stays in float32.
"""

import dataclasses
import importlib.metadata
import importlib.util
import os
from typing import Protocol

from poan_runtime import extras
from poan_runtime.engines import PRECISIONS
from poan_runtime.engines.nvidia import device_kind
from poan_runtime.errors import PoanError
from poan_runtime.models.find import Model
from poan_runtime.models.manifest import CpuPrecision

CAP = "ONEDNN_MAX_CPU_ISA"
"""What caps OpenVINO's instructions, for a look at how a CPU with fewer would do."""


class Options(Protocol):
    """What of `poan_runtime.engines.backend.EngineOptions` matters here."""

    @property
    def backend(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def precision(self) -> str: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reduced:
    """The manifest's entry to run by, or None for float32, and why."""

    entry: CpuPrecision | None
    reason: str


NOT_REDUCED = Reduced(entry=None, reason="its own precision")


def reduced_precision(model: Model, options: Options, *, judged: bool = True) -> Reduced:
    """What ``options.precision`` comes to for this model on this CPU.

    Raises PoanError where bf16 is demanded of a model that nothing vouches for; on a CPU without
    bf16 even then float32 runs. ``judged`` false takes an entry without a verdict of this release,
    and one that failed where bf16 is demanded.
    """
    if options.precision not in PRECISIONS:
        raise PoanError(f"--precision: expected {', '.join(PRECISIONS)}, got {options.precision}")
    if options.precision == "fp32":
        return Reduced(entry=None, reason="float32 was asked for")
    if options.backend not in ("auto", "openvino") or device_kind(options.device) == "cuda":
        return _demanded(options, f"{options.backend} on {options.device} has none")
    listed = [entry for entry in model.manifest.cpu_precisions if entry.file == model.file.name]
    if not listed:
        return _demanded(options, f"the manifest has no verdict on {model.file.name} in bf16")
    if importlib.util.find_spec("openvino") is None:
        return _demanded(options, extras.missing("openvino", "openvino"))
    here = release(importlib.metadata.version("openvino"))
    entry = next((one for one in listed if release(one.version) == here), listed[0])
    known = release(entry.version) == here
    failed = known and entry.parity.verdict != "pass"
    if failed and (judged or options.precision == "auto"):
        return _demanded(options, f"the manifest's verdict on bf16 is {entry.parity.verdict}")
    if judged and not known:
        return _demanded(
            options,
            f"bf16 was judged with openvino {release(entry.version)}, this is {here}; "
            f"poan-run --verify --precision bf16 {model.path} judges it here",
        )
    if not cpu_has_bf16():
        return Reduced(entry=None, reason="this CPU has no bf16")
    return Reduced(entry=entry, reason="bf16 passed the parity gate" if judged else "to be judged")


def _demanded(options: Options, obstacle: str) -> Reduced:
    if options.precision == "bf16":
        raise PoanError(f"--precision bf16: {obstacle}")
    return Reduced(entry=None, reason=obstacle)


def release(version: str) -> str:
    """The part of a version that a verdict holds for.

    >>> release("2026.4.1-22218-c4ff5ab3d57")
    '2026.4'
    """
    return ".".join(version.split("-")[0].split(".")[:2])


def cpu_has_bf16() -> bool:
    """Whether OpenVINO finds native bf16 (avx512_bf16 or amx_bf16) here, and may use it."""
    cap = os.environ.get(CAP, "ALL").upper()
    if cap not in ("ALL", "DEFAULT", "") and "BF16" not in cap and "AMX" not in cap:
        return False
    from poan_runtime.engines.openvino.library import core

    capabilities: list[str] = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "BF16" in capabilities
