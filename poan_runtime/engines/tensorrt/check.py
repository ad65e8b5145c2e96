"""What must hold before a plan is deserialised. A plan is native code: the hash comes first.

The hash is checked by `find_model`. Then, in this order: the library is installed; its version
is the plan's; the header is that of a plan; there is a GPU; the plan was built for its compute
capability; and, for tensorrt-rtx, the library itself calls the plan valid here.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

from poan_runtime.engines.nvidia import Gpu, fitting_extra
from poan_runtime.engines.tensorrt.library import Library
from poan_runtime.errors import PoanError
from poan_runtime.files import reading
from poan_runtime.models.find import Model
from poan_runtime.models.manifest import Engine

HEADER_BYTES = 64
REMEDIES = {
    "VERSION_MISMATCH": "was built by another version of tensorrt-rtx; export it again",
    "UNSUPPORTED_CC": "was not built for this GPU; export it again with --sm",
    "OLD_CUDA_DRIVER": "needs a newer NVIDIA driver; update it",
    "OLD_CUDA_RUNTIME": "needs a newer CUDA runtime; update tensorrt-rtx",
    "INSUFFICIENT_GPU_MEMORY": "needs more GPU memory; export it again with --vram",
    "MALFORMED_ENGINE": "is not a tensorrt-rtx plan, or is damaged; export it again",
    "CUDA_ERROR": "cannot be checked: CUDA does not start; check the NVIDIA driver",
}
"""What a bit of `EngineInvalidityDiagnostics` means for the user."""


def read_plan(model: Model) -> bytes:
    """The plan's bytes, whose hash is that of the manifest: what was checked is what is loaded.

    A hash shows that a file is whole, not who made it: that the folder is yours to trust.
    """
    with reading(model.path):
        plan = model.path.read_bytes()
    if hashlib.sha256(plan).hexdigest() != model.file.sha256:
        raise PoanError(f"{model.path}: expected sha256 {model.file.sha256[:12]}..., got another")
    return plan


def engine_facts(model: Model) -> Engine:
    """What the manifest says about how the plan was built."""
    if model.file.engine is None:
        raise PoanError(
            f"{model.path}: expected the entry 'engine' in the manifest, got none; export it again"
        )
    return model.file.engine


def check_version(model: Model, library: Library) -> None:
    """The plan must have been built by exactly the version that is installed."""
    built = engine_facts(model).version
    if library.version != built:
        raise PoanError(
            f"{model.path}: built for {library.flavour} {built}, this is {library.version}; "
            f"export it again, or pip install '{fitting_extra(library.flavour)}=={built}'"
        )


def check_gpu(model: Model, gpu: Gpu) -> tuple[str, ...]:
    """The plan must have been built for this GPU; notices of what differs and may be slower.

    A plan of tensorrt-rtx serves every GPU of its compute capabilities. One of `tensorrt` is
    tied to the GPU's model: its name, multiprocessors and memory.
    """
    engine = engine_facts(model)
    if gpu.compute_capability not in engine.compute_capabilities:
        sm = gpu.compute_capability.replace(".", "")
        remedy = f"--sm {sm}" if engine.flavour == "tensorrt-rtx" else "on this GPU"
        raise PoanError(
            f"{model.path}: built for compute capability "
            f"{', '.join(engine.compute_capabilities)}, this GPU ({gpu.name}) has "
            f"{gpu.compute_capability}; export it again {remedy}"
        )
    if engine.gpu is None:
        return ()
    for what in ("name", "sms"):
        if (built := engine.gpu.get(what)) != (here := getattr(gpu, what)):
            raise PoanError(
                f"{model.path}: built on {built} ({what}), this GPU has {here}; "
                f"poan-build {model.path.parent} builds one for it"
            )
    if gpu.memory_bytes < (needed := int(engine.gpu["memory_bytes"])):
        raise PoanError(
            f"{model.path}: built with {needed >> 20} MiB of memory, this GPU has "
            f"{gpu.memory_bytes >> 20} MiB; poan-build {model.path.parent} builds one for it"
        )
    return tuple(
        f"{model.path.name}: built with CUDA {engine.gpu.get(what)} ({what}), this is "
        f"{getattr(gpu, what)}; poan-run --verify {model.path} judges it here"
        for what in ("driver", "runtime")
        if engine.gpu.get(what) != getattr(gpu, what)
    )


def check_header(model: Model, plan: bytes, library: Library, *, gpu: bool) -> tuple[str, ...]:
    """Ask tensorrt-rtx about the plan's header; notices, or PoanError with the remedy.

    Without a GPU the library cannot judge the device and calls every plan invalid; what it says
    of the header's form holds all the same. `tensorrt` has no such call.
    """
    if library.flavour != "tensorrt-rtx":
        return ()
    header = plan[:HEADER_BYTES]
    validity, bits = library.api.Runtime(library.logger).get_engine_validity(header)
    found = diagnostics(library.api, bits)
    if not gpu:
        found = [name for name in found if name == "MALFORMED_ENGINE"]
    elif validity == library.api.EngineValidity.INVALID and not found:
        raise PoanError(f"{model.path}: {library.flavour} calls it invalid on this GPU")
    for name in found:
        if validity == library.api.EngineValidity.INVALID:
            raise PoanError(f"{model.path}: it {REMEDIES.get(name, name)}")
    if gpu and validity == library.api.EngineValidity.SUBOPTIMAL:
        return (f"{model.path.name}: runs on this GPU, but was not built for it",)
    return ()


def diagnostics(api: Any, bits: int) -> Sequence[str]:
    """Names of the bits that `get_engine_validity` set."""
    members = api.EngineInvalidityDiagnostics.__members__
    return [name for name, value in members.items() if int(value) & int(bits)]
