"""TensorRT plans from ONNX files: which flavour, for which GPUs, built in a process of its own."""

import dataclasses
import importlib.util
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from poan_runtime import extras
from poan_runtime.engines.nvidia import Gpu, fitting_extra
from poan_runtime.engines.tensorrt.build.log import read_build_log
from poan_runtime.engines.tensorrt.library import MODULES, Flavour
from poan_runtime.errors import PoanError
from poan_runtime.files import cache_folder, sha256_of
from poan_runtime.models.fields import Json
from poan_runtime.models.manifest import (
    PENDING,
    BatchRange,
    Engine,
    ModelFile,
    Precision,
)

SMS = ("75", "80", "86", "89", "120", "121")
"""Targets of tensorrt-rtx 1.7. There is no SM90: data-centre Hopper runs `tensorrt`."""
SMS_FOR = {
    "fp32": SMS,
    "fp16": SMS,
    "bf16": SMS[1:],
    "int8": SMS,
    "fp8": SMS[3:],
}
"""Targets that have arithmetic for a precision: SM75 has no bf16, SM75 to 86 no fp8."""
ALONE = "75"
"""Built only when asked for, in a plan of its own: for SM75 tensorrt-rtx 1.7 has no fp32 matrix
product, so that a graph with one (any fp32 POAN, and the fp32 root in an fp16 one) is refused."""
PREFERRED = ("fp16", "bf16", "fp32")
"""Which ONNX file plans are built from: the first of these that there is."""
EIGHT_BIT = ("int8", "fp8")
MOST_SECONDS = 3600.0
TIES = ("name", "sms", "memory_bytes", "driver", "runtime")
"""What of a GPU a plan of `tensorrt` is tied to."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """What to build: ``sms`` are the targets of tensorrt-rtx, empty for the GPU at hand."""

    onnx: Path
    plan: Path
    flavour: Flavour
    precision: Precision
    islands: tuple[str, ...]
    batch: BatchRange
    sms: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    """Inner tensors that come out too, as float32: to look inside an engine."""
    log: Path | None = None
    """Where a failed build leaves its log; None is beside the plan."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuiltPlan:
    """A plan on disk and what the manifest says about it."""

    order: Order
    version: str
    compute_capabilities: tuple[str, ...]
    builder_flags: tuple[str, ...]
    gpu: Json | None
    """What ties a plan of `tensorrt` to the GPU that it was built on."""
    report: Mapping[str, Any]

    def manifest_entry(self) -> ModelFile:
        """The entry for ``files``; its parity is pending."""
        order = self.order
        return ModelFile(
            name=order.plan.name,
            kind="plan",
            precision=order.precision,
            islands=order.islands,
            sha256=sha256_of(order.plan),
            engine=Engine(
                flavour=order.flavour,
                version=self.version,
                compute_capabilities=self.compute_capabilities,
                builder_flags=self.builder_flags,
                source_onnx_sha256=sha256_of(order.onnx),
                profile=order.batch,
                report=self.report,
                gpu=self.gpu,
            ),
            parity=PENDING,
        )


def targets(precision: str, asked: str | None = None) -> list[tuple[str, ...]]:
    """Groups of SMs, one plan each, for ``--sm`` (``86,89``; None takes all that go together).

    >>> targets("fp16")
    [('80', '86', '89', '120', '121')]
    >>> targets("fp16", "75,86")
    [('86',), ('75',)]
    >>> targets("fp8")
    [('89', '120', '121')]
    """
    able = SMS_FOR[precision]
    if asked is None:
        return [tuple(sm for sm in able if sm != ALONE)]
    names = [name.strip().upper().removeprefix("SM") for name in asked.split(",")]
    for name in names:
        if name not in SMS:
            raise PoanError(f"--sm: expected some of {','.join(SMS)}, got {name or 'nothing'!r}")
        if name not in able:
            raise PoanError(f"--sm: SM{name} has no {precision} arithmetic; leave it out")
    chosen = [sm for sm in SMS if sm in names]
    together = tuple(sm for sm in chosen if sm != ALONE)
    return [group for group in (together, (ALONE,) if ALONE in chosen else ()) if group]


def plan_name(sms: Sequence[str], precision: str = "", gpu: str = "") -> str:
    """File name of the plan for a group of targets, or for one model of GPU.

    >>> plan_name(("80", "86")), plan_name(("75",)), plan_name(("86",), "int8")
    ('engine.plan', 'engine.sm75.plan', 'engine.int8.plan')
    >>> plan_name((), gpu="NVIDIA A100-SXM4-80GB")
    'engine.nvidia-a100-sxm4-80gb.plan'
    """
    parts = [
        "engine",
        precision if precision in EIGHT_BIT else "",
        f"sm{ALONE}" if tuple(sms) == (ALONE,) else "",
        slug(gpu),
        "plan",
    ]
    return ".".join(part for part in parts if part)


def source_of_plans(files: Sequence[ModelFile]) -> ModelFile:
    """The ONNX file that plans are built from: the one in half precision where there is one."""
    return min(
        (file for file in files if file.kind == "onnx" and file.precision in PREFERRED),
        key=lambda file: PREFERRED.index(file.precision),
    )


def order_from(
    folder: Path,
    source: ModelFile,
    name: str,
    flavour: Flavour,
    sms: tuple[str, ...],
    batch: int,
    log: Path | None = None,
) -> Order:
    """An order for the plan ``name`` beside its ONNX file, for full batches."""
    return Order(
        onnx=folder / source.name,
        plan=folder / name,
        flavour=flavour,
        precision=source.precision,
        islands=source.islands,
        batch=full_batches(batch),
        sms=sms,
        log=log,
    )


def slug(name: str) -> str:
    """A GPU's name in a file's name.

    >>> slug("NVIDIA RTX A6000/Ada")
    'nvidia-rtx-a6000-ada'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def compute_capability(sm: str) -> str:
    """As manifests write it.

    >>> compute_capability("86"), compute_capability("120")
    ('8.6', '12.0')
    """
    return f"{sm[:-1]}.{sm[-1]}"


def full_batches(count: int) -> BatchRange:
    """The profile of a plan: every batch is full, so that one size is all that it is built for.

    >>> full_batches(8)
    BatchRange(min=8, opt=8, max=8)
    """
    return BatchRange(min=count, opt=count, max=count)


def find_gpu_here() -> tuple[Gpu | None, str]:
    """The GPU at hand, or None, and what was found."""
    if importlib.util.find_spec("cuda") is None:
        return None, "cuda-python is not installed"
    from poan_runtime.engines.tensorrt import cuda

    try:
        gpu = cuda.find_gpu()
    except cuda.NoGpuError as error:
        return None, str(error)
    return gpu, gpu.name


def gpu_here() -> tuple[str | None, str]:
    """Compute capability of the GPU at hand, or None, and what was found."""
    gpu, found = find_gpu_here()
    return None if gpu is None else gpu.compute_capability, found


def choose_flavour(asked: str) -> tuple[Flavour | None, str]:
    """The flavour that ``--engine`` means on this machine, and why; None where auto finds none."""
    if asked in MODULES:
        with extras.needs(MODULES[asked], fitting_extra(asked)):
            if importlib.util.find_spec(MODULES[asked]) is None:
                raise ModuleNotFoundError(name=MODULES[asked])
        here, found = gpu_here()
        if asked == "tensorrt" and here is None:
            raise PoanError(
                f"--engine tensorrt builds on the GPU that it is for ({found}); "
                "--engine tensorrt-rtx builds without one"
            )
        return ("tensorrt" if asked == "tensorrt" else "tensorrt-rtx"), "asked for"
    if asked != "auto":
        raise PoanError(f"--engine: expected auto, none, {', '.join(MODULES)}, got {asked}")
    here, found = gpu_here()
    if here is not None and importlib.util.find_spec("tensorrt") is not None:
        return "tensorrt", f"tensorrt is installed and there is a GPU ({found})"
    if importlib.util.find_spec("tensorrt_rtx") is not None:
        return "tensorrt-rtx", f"tensorrt-rtx builds ahead of time ({found})"
    return None, (
        f"no TensorRT here, so no plan; for one: {extras.command(fitting_extra('tensorrt-rtx'))}"
    )


def build_plan(order: Order) -> BuiltPlan:
    """Build one plan. Whatever becomes of the builder, this process lives to tell of it."""
    gpu = find_gpu_here()[0] if order.flavour == "tensorrt" else None
    with tempfile.TemporaryDirectory() as scratch:
        files = {name: Path(scratch) / name for name in ("order.json", "facts.json", "error.txt")}
        timings = None
        if gpu is not None:
            name = f"timings-{slug(gpu.name)}-{gpu.compute_capability}.cache"
            timings = str(cache_folder() / name)
        document = {
            "onnx": str(order.onnx),
            "plan": str(order.plan),
            "flavour": order.flavour,
            "sms": list(order.sms),
            "outputs": list(order.outputs),
            "batch": order.batch.json(),
            "timing_cache": timings,
            "facts": str(files["facts.json"]),
            "error": str(files["error.txt"]),
        }
        files["order.json"].write_text(json.dumps(document), "utf-8")
        command = [
            sys.executable,
            "-m",
            "poan_runtime.engines.tensorrt.build.builder",
            str(files["order.json"]),
        ]
        kept = order.log or order.plan.with_name(f"{order.plan.name}.log")
        log, seconds = run_builder(command, order.plan, files["error.txt"], kept)
        facts = json.loads(files["facts.json"].read_text("utf-8"))
    report = read_build_log(log)
    report |= {"build_s": round(seconds, 3), "plan_bytes": order.plan.stat().st_size}
    capabilities = (gpu.compute_capability,) if gpu else map(compute_capability, order.sms)
    return BuiltPlan(
        order=order,
        version=facts["version"],
        compute_capabilities=tuple(capabilities),
        builder_flags=tuple(facts["builder_flags"]),
        gpu=None if gpu is None else {key: getattr(gpu, key) for key in TIES},
        report=report,
    )


def describe(name: str, capabilities: Sequence[str], report: Mapping[str, Any]) -> str:
    """One line about a plan, from its build report."""
    memory = report["activation_bytes"]
    shown = "" if memory is None else f", {memory / 2**20:.0f} MiB of activations"
    fused = len(report["fused_attention"])
    return (
        f"{name}: {report['plan_bytes'] / 2**20:.1f} MiB for {', '.join(capabilities)}, "
        f"{report['layers']} layers, {fused} fused attention, built in "
        f"{report['build_s']:.1f} s{shown}"
    )


def run_builder(command: Sequence[str], plan: Path, error: Path, log: Path) -> tuple[str, float]:
    """Run a builder and return its log and seconds.

    A builder that dies leaves its log at ``log``, which the error names together with the last
    line. One that refuses writes its reason to the file ``error``.
    """
    start = time.perf_counter()
    with log.open("wb") as out:
        try:
            done = subprocess.run(
                command, stdout=out, stderr=subprocess.STDOUT, check=False, timeout=MOST_SECONDS
            )
        except subprocess.TimeoutExpired:
            raise PoanError(
                f"{plan}: the builder took more than {MOST_SECONDS:.0f} s; its log is {log}"
            ) from None
    seconds = time.perf_counter() - start
    text = log.read_text("utf-8", errors="replace")
    if done.returncode == 0:
        log.unlink()
        return text, seconds
    if error.is_file():
        said = re.findall(r"^\[ERROR\] (.+)$", text, re.MULTILINE)
        why = f": {said[-1]}" if said else ""
        raise PoanError(f"{error.read_text('utf-8')}{why} (log: {log})")
    end = text.strip().splitlines()[-1] if text.strip() else "nothing"
    raise PoanError(
        f"{plan}: the builder {_how_it_ended(done.returncode)}; its last words: {end} (log: {log})"
    )


def _how_it_ended(code: int) -> str:
    """
    >>> _how_it_ended(-11)
    'died of SIGSEGV'
    >>> _how_it_ended(1)
    'ended with status 1'
    """
    return f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
