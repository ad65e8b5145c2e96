"""What runs a network: one small protocol, a table of who can, and the choice among them."""

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from poan_runtime import extras
from poan_runtime.engines.kserve.address import NO_ACCESS, Access
from poan_runtime.engines.nvidia import device_kind, fitting_extra, has_gpu
from poan_runtime.engines.precision import NOT_REDUCED, Reduced, reduced_precision
from poan_runtime.errors import PoanError
from poan_runtime.models.find import Model

Tiles = NDArray[np.float32]

LANES = 2
"""Batches that an engine is given before the answer to the first is asked for.

On a GPU the copies of one overlap with the computation of the other."""


class Backend(Protocol):
    """A network in an engine. The protocol that every engine keeps to.

    A class that names it as its base need only say `run`. `tests/runtime/engines/conformance.py`
    holds what each implementation must do; the test of each one calls it.
    """

    fills_batches: bool = True
    """Whether a batch that is not full must be filled: not where tiles run one by one.

    Most engines answer a tile alike in every batch of one size, but not in batches of one and
    of many.
    """
    images: int = 1
    """How many images an answer to a tile holds; `poan_runtime.tiles.ensemble` gives two."""
    in_flight: int = LANES
    """How many batches may be begun before the first is waited for."""

    def run(self, batch: Tiles) -> Tiles:
        """(N, 1, h, w) LR tiles to (N, 1, s*h, s*w) HR tiles, both float32 and C-contiguous.

        An engine returns a new array. Raises PoanError if the engine refuses the batch.
        """
        ...

    def start(self, batch: Tiles) -> Callable[[], Tiles]:
        """Start a batch and return what waits for its answer, as `run` gives it.

        An engine that works beside the caller begins at once, and may be given a second batch
        before the first is asked for; this one runs when it is asked.
        """
        return lambda: self.run(batch)

    def close(self) -> None:
        """Free what the engine holds; a second call does nothing. Here there is nothing."""
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Which engine is to run a model, and how.

    ``backend`` is ``auto`` or a name of `BACKENDS`; ``device`` is ``auto``, ``cpu``,
    ``cuda`` or ``cuda:N``.
    ``threads`` None leaves the number to the engine.
    ``precision`` is that of an ONNX file on a CPU: ``auto`` takes bf16 where the manifest holds
    a passing verdict for it and this CPU has it, ``bf16`` insists on it, ``fp32`` never does.
    What does not fit together is refused by `open_backend` with a PoanError.

    >>> EngineOptions(backend="onnxruntime", threads=2).device
    'auto'
    """

    backend: str = "auto"
    device: str = "auto"
    threads: int | None = None
    precision: str = "auto"
    reduced: Reduced = NOT_REDUCED
    """What ``precision`` came to; `open_backend` fills it in."""
    access: Access = NO_ACCESS
    """How a model on a server is reached."""
    judged: bool = True
    """False takes what a verdict forbids, to judge it anew; `open_backend` fills it in."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenedBackend:
    """A backend that is ready, what it runs on, why it was taken, and what the user must know."""

    backend: Backend
    name: str
    device: str
    version: str
    reason: str
    notices: tuple[str, ...] = ()
    precision: str | None = None
    """What it computes in where that may differ from the file's; None: the file's own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackendKind:
    """An entry of the table: ``module`` has ``open_backend(model, options) -> OpenedBackend``.

    ``kinds`` are the model files it runs, ``needs`` the module that must be installed and
    ``extra`` the extra of poan that installs it. One that is not ``automatic`` runs only when
    it is named.
    """

    module: str
    kinds: tuple[str, ...]
    needs: str
    extra: str
    devices: tuple[str, ...]
    automatic: bool = True


BACKENDS = {
    "onnxruntime": BackendKind(
        module="poan_runtime.engines.onnxrt",
        kinds=("onnx",),
        needs="onnxruntime",
        extra="cpu",
        devices=("cpu", "cuda"),
    ),
    "openvino": BackendKind(
        module="poan_runtime.engines.openvino.backend",
        kinds=("onnx",),
        needs="openvino",
        extra="openvino",
        devices=("cpu",),
    ),
    "onnxruntime-tensorrt": BackendKind(
        module="poan_runtime.engines.onnxrt",
        kinds=("onnx",),
        needs="onnxruntime",
        extra="gpu",
        devices=("cuda",),
        automatic=False,
    ),
    "tensorrt": BackendKind(
        module="poan_runtime.engines.tensorrt.backend",
        kinds=("plan",),
        needs="tensorrt",
        extra="tensorrt",
        devices=("cuda",),
        automatic=False,
    ),
    "tensorrt-pycuda": BackendKind(
        module="poan_runtime.engines.tensorrt.with_pycuda",
        kinds=("plan",),
        needs="pycuda",
        extra="pycuda",
        devices=("cuda",),
        automatic=False,
    ),
    "tensorrt-rtx": BackendKind(
        module="poan_runtime.engines.tensorrt.backend",
        kinds=("plan",),
        needs="tensorrt_rtx",
        extra="tensorrt-rtx",
        devices=("cuda",),
        automatic=False,
    ),
}
"""Backends by name, in the order in which ``auto`` prefers them on a CPU."""

SPOKEN = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
"""What a user calls a backend."""

FASTER_IN_OPENVINO = ("box", "flat", "unfold")
"""Forms of the attention that OpenVINO took less time for in float32, with AVX2 and with AVX-512
(benchmarks/results/isa.json; unfold in docs/architecture.md). A stated rule and no timing at the
start: with that, two runs of one scan could differ in the engine, and so in the last bits."""


def spoken(name: str, device: str) -> str:
    """A backend and where it runs, as a user calls them; a version may follow the name.

    >>> spoken("onnxruntime", "cpu"), spoken("openvino 2026.1", "cpu")
    ('ONNX Runtime on the CPU', 'OpenVINO 2026.1 on the CPU')
    """
    engine, space, version = name.partition(" ")
    where = "the CPU" if device == "cpu" else device
    return f"{SPOKEN.get(engine, engine)}{space}{version} on {where}"


def open_backend(model: Model, options: EngineOptions, *, judged: bool = True) -> OpenedBackend:
    """Load the model into the backend asked for, or into the best one for ``auto``.

    ``judged`` false takes a precision or a GPU that its verdict forbids, to judge it anew.
    """
    options = dataclasses.replace(options, judged=judged)
    if model.file.engine is None:
        reduced = reduced_precision(model, options, judged=judged)
        options = dataclasses.replace(options, reduced=reduced)
    if options.backend != "auto":
        return _open(options.backend, model, options)
    if model.file.engine is not None:
        return _open(model.file.engine.flavour, model, options)
    name, reason = _choose(model, options)
    opened = _open(name, model, options)
    return dataclasses.replace(opened, reason=f"{reason}; {opened.reason}")


def _choose(model: Model, options: EngineOptions) -> tuple[str, str]:
    """The backend that ``auto`` takes, and why."""
    fitting = {
        name: kind
        for name, kind in BACKENDS.items()
        if kind.automatic
        and model.file.kind in kind.kinds
        and device_kind(options.device) in ("auto", *kind.devices)
    }
    if not fitting:
        raise PoanError(
            f"{model.path}: no backend runs a {model.file.kind} file on device {options.device}"
        )
    installed = [name for name, kind in fitting.items() if importlib.util.find_spec(kind.needs)]
    if not installed:
        wanted = [extra_for(kind, options.device) for kind in fitting.values()]
        commands = " or ".join(extras.command(extra) for extra in wanted)
        absent = device_kind(options.device) == "cuda" and not has_gpu()
        first = "the NVIDIA driver shows no GPU here, and " if absent else ""
        raise PoanError(f"{first}no inference engine is installed; run: {commands}")
    if len(installed) == 1:
        return installed[0], f"{installed[0]} is the only engine installed for it"
    if "onnxruntime" in installed and options.device != "cpu" and _cuda_in_onnxruntime():
        return "onnxruntime", "onnxruntime reaches the GPU"
    if options.reduced.entry is not None or options.precision == "bf16":
        return "openvino", "openvino alone runs bf16 on a CPU"
    if "openvino" in installed and model.manifest.attention.form in FASTER_IN_OPENVINO:
        return "openvino", "openvino was faster in float32 wherever it was measured"
    return installed[0], f"{installed[0]} is the default in float32"


def extra_for(kind: BackendKind, device: str) -> str:
    """The extra that installs a backend for a device, and for the driver that is here.

    >>> extra_for(BACKENDS["onnxruntime"], "cuda:1"), extra_for(BACKENDS["onnxruntime"], "auto")
    ('gpu', 'cpu')
    """
    if kind.extra.startswith("tensorrt"):
        return fitting_extra(kind.extra)
    return "gpu" if kind.extra == "cpu" and device_kind(device) == "cuda" else kind.extra


def _cuda_in_onnxruntime() -> bool:
    """Whether it has the provider and the driver has a GPU; the provider alone says nothing."""
    with extras.needs("onnxruntime", "cpu"):
        import onnxruntime

    return has_gpu() and "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def _open(name: str, model: Model, options: EngineOptions) -> OpenedBackend:
    if name not in BACKENDS:
        raise PoanError(f"--backend: expected auto or one of {', '.join(BACKENDS)}, got {name}")
    kind = BACKENDS[name]
    if model.file.kind not in kind.kinds:
        raise PoanError(
            f"{model.path}: {name} runs {' and '.join(kind.kinds)} files, "
            f"this is a {model.file.kind}"
        )
    if device_kind(options.device) not in ("auto", *kind.devices):
        raise PoanError(
            f"--device: {name} runs on {' and '.join(kind.devices)}, not on {options.device}"
        )
    extra = extra_for(kind, options.device)
    with extras.needs(kind.needs, extra), extras.needs("cuda", extra):
        module: Any = importlib.import_module(kind.module)
    opened: OpenedBackend = module.open_backend(model, options)
    return opened


def check_shapes(model: Model, shape_in: list[Any], shape_out: list[Any]) -> None:
    """Compare the shapes that a graph declares with the manifest; unknown extents pass."""
    tile, fine = model.manifest.tile, model.manifest.tile * model.manifest.scale
    for what, shape, expected in (
        ("input", shape_in, [None, 1, tile, tile]),
        ("output", shape_out, [None, 1, fine, fine]),
    ):
        known = [n if isinstance(n, int) and n > 0 else None for n in shape]
        fits = len(known) == 4 and all(
            a is None or b is None or a == b for a, b in zip(known, expected, strict=True)
        )
        if not fits:
            raise PoanError(
                f"{model.path}: expected {what} shape (N, 1, {expected[2]}, {expected[3]}), "
                f"got {tuple(shape)}"
            )
