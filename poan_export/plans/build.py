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

from poan_export.plans.build_log import read_build_log
from poan_runtime import extras
from poan_runtime.engines.tensorrt.library import MODULES, Flavour
from poan_runtime.errors import PoanError
from poan_runtime.files import cache_folder, sha256_of
from poan_runtime.models.manifest import BatchRange

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
MOST_SECONDS = 3600.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """What to build: ``sms`` are the targets of tensorrt-rtx, empty for the GPU at hand."""

    onnx: Path
    plan: Path
    flavour: Flavour
    precision: str
    islands: tuple[str, ...]
    batch: BatchRange
    sms: tuple[str, ...] = ()
    log: Path | None = None
    """Where a failed build leaves its log; None is beside the plan."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuiltPlan:
    """A plan on disk and what the manifest says about it."""

    order: Order
    version: str
    compute_capabilities: tuple[str, ...]
    builder_flags: tuple[str, ...]
    report: Mapping[str, Any]

    def manifest_entry(self, parity: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The entry for ``files``; parity is pending unless it was run."""
        order = self.order
        return {
            "name": order.plan.name,
            "kind": "plan",
            "precision": order.precision,
            "islands": list(order.islands),
            "sha256": sha256_of(order.plan),
            "engine": {
                "flavour": order.flavour,
                "version": self.version,
                "compute_capabilities": list(self.compute_capabilities),
                "builder_flags": list(self.builder_flags),
                "source_onnx_sha256": sha256_of(order.onnx),
                "profile": dataclasses.asdict(order.batch),
                "report": dict(self.report),
            },
            "parity": dict(parity or {"verdict": "pending", "checks": []}),
        }


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


def plan_name(sms: Sequence[str]) -> str:
    """File name of the plan for a group of targets.

    >>> plan_name(("80", "86")), plan_name(("75",))
    ('engine.plan', 'engine.sm75.plan')
    """
    return f"engine.sm{ALONE}.plan" if tuple(sms) == (ALONE,) else "engine.plan"


def compute_capability(sm: str) -> str:
    """As manifests write it.

    >>> compute_capability("86"), compute_capability("120")
    ('8.6', '12.0')
    """
    return f"{sm[:-1]}.{sm[-1]}"


def gpu_here() -> tuple[str | None, str]:
    """Compute capability of the GPU at hand, or None, and what was found."""
    if importlib.util.find_spec("cuda") is None:
        return None, "cuda-python is not installed"
    from poan_runtime.engines.tensorrt import cuda

    try:
        gpu = cuda.find_gpu()
    except cuda.NoGpuError as error:
        return None, str(error)
    return gpu.compute_capability, gpu.name


def choose_flavour(asked: str) -> tuple[Flavour | None, str]:
    """The flavour that ``--engine`` means on this machine, and why; None where auto finds none."""
    if asked in MODULES:
        with extras.needs(MODULES[asked], asked):
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
    return None, "no TensorRT here, so no plan; for one: pip install 'poan[tensorrt-rtx]'"


def build_plan(order: Order) -> BuiltPlan:
    """Build one plan. Whatever becomes of the builder, this process lives to tell of it."""
    capability, found = gpu_here() if order.flavour == "tensorrt" else (None, "")
    with tempfile.TemporaryDirectory() as scratch:
        files = {name: Path(scratch) / name for name in ("order.json", "facts.json", "error.txt")}
        timings = None
        if capability is not None:
            gpu = found.replace(" ", "-").replace("/", "-")
            timings = str(cache_folder() / f"timings-{gpu}-{capability}.cache")
        document = {
            "onnx": str(order.onnx),
            "plan": str(order.plan),
            "flavour": order.flavour,
            "sms": list(order.sms),
            "batch": dataclasses.asdict(order.batch),
            "timing_cache": timings,
            "facts": str(files["facts.json"]),
            "error": str(files["error.txt"]),
        }
        files["order.json"].write_text(json.dumps(document), "utf-8")
        command = [sys.executable, "-m", "poan_export.plans.builder", str(files["order.json"])]
        kept = order.log or order.plan.with_name(f"{order.plan.name}.log")
        log, seconds = run_builder(command, order.plan, files["error.txt"], kept)
        facts = json.loads(files["facts.json"].read_text("utf-8"))
    report = read_build_log(log)
    report |= {"build_s": round(seconds, 3), "plan_bytes": order.plan.stat().st_size}
    capabilities = (capability,) if capability else map(compute_capability, order.sms)
    return BuiltPlan(
        order=order,
        version=facts["version"],
        compute_capabilities=tuple(capabilities),
        builder_flags=tuple(facts["builder_flags"]),
        report=report,
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
