"""On what a benchmark ran: processors, clocks, throttling, versions."""

import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "poan",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "tensorrt_rtx_cu13",
    "cuda-python",
)
GPU_FIELDS = (
    "name",
    "driver_version",
    "pstate",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "temperature.gpu",
    "power.draw",
    "memory.used",
)
SLOWED_BY = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
"""A bit mask, 0 at full speed and 1 when idle: its name today, and that of drivers before R535."""
CPUS = Path("/sys/devices/system/cpu")


def describe_machine() -> dict[str, Any]:
    """What does not change during a run."""
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "cpus": os.cpu_count(),
        "cpus_allowed": len(os.sched_getaffinity(0)) if sys.platform == "linux" else None,
        "versions": _versions(),
    }


def snapshot() -> dict[str, Any]:
    """What may change during a run, taken before and after; None where it cannot be known."""
    return {
        "load_average": _load_average(),
        "cpu_mhz": _cpu_mhz(),
        "cpu_governor": _text(CPUS / "cpu0/cpufreq/scaling_governor"),
        "cpu_throttle_counts": _throttle_counts(),
        "gpus": _gpus(),
    }


def _load_average() -> list[float] | None:
    """None on Windows, which keeps none."""
    return list(os.getloadavg()) if hasattr(os, "getloadavg") else None


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _text(path: Path) -> str | None:
    try:
        return path.read_text("utf-8").strip()
    except OSError:
        return None


def _cpuinfo(key: str) -> list[str]:
    lines = (_text(Path("/proc/cpuinfo")) or "").splitlines()
    return [line.split(":", 1)[1].strip() for line in lines if line.startswith(key)]


def _cpu_name() -> str:
    return next(iter(_cpuinfo("model name")), platform.processor() or "unknown")


def _cpu_mhz() -> list[float] | None:
    return [float(value) for value in _cpuinfo("cpu MHz")] or None


def _throttle_counts() -> list[int] | None:
    counts = [_text(p) for p in sorted(CPUS.glob("cpu*/thermal_throttle/core_throttle_count"))]
    return [int(count) for count in counts if count] or None


def _gpus() -> list[dict[str, str]] | None:
    """One entry per GPU as nvidia-smi tells; None without it."""
    if shutil.which("nvidia-smi") is None:
        return None
    for slowed_by in SLOWED_BY:
        fields = (*GPU_FIELDS, slowed_by)
        command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        if done.returncode == 0:
            rows = [line.split(", ") for line in done.stdout.strip().splitlines()]
            names = (*GPU_FIELDS, SLOWED_BY[0])
            return [dict(zip(names, row, strict=True)) for row in rows if len(row) == len(names)]
    return None
