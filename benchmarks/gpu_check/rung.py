"""One rung: ``python -m benchmarks.gpu_check.rung NAME FIGURES.json``."""

import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.ladder import SKIPPED

Figures = dict[str, Any]


class NothingToRunOnError(Exception):
    """What the machine lacks for this rung."""


def need_gpu() -> Any:
    """The GPU; else the rung is skipped with the reason."""
    try:
        from poan_runtime.engines.tensorrt import cuda
    except ModuleNotFoundError as error:
        raise NothingToRunOnError(f"{error.name} is not installed") from None
    try:
        return cuda.find_gpu()
    except cuda.NoGpuError as error:
        raise NothingToRunOnError(str(error)) from None


def versions() -> Figures:
    """What the machine is; runs anywhere."""
    from poan_runtime.bench.machine import describe_machine, snapshot
    from poan_runtime.engines.nvidia import find_driver

    driver = find_driver()
    told = None if driver is None else {"cuda": driver.cuda, "gpus": list(driver.gpus)}
    return {"machine": describe_machine(), "state": snapshot(), "driver": told}


def crash() -> Figures:
    os.kill(os.getpid(), signal.SIGSEGV)
    return {}


def hang() -> Figures:
    time.sleep(3600)
    return {}


HERE: dict[str, Callable[[], Figures]] = {"versions": versions, "crash": crash, "hang": hang}


def main() -> int:
    name, out = sys.argv[1], Path(sys.argv[2])
    try:
        if name in HERE:
            figures = HERE[name]()
        else:
            rung = importlib.import_module(f"benchmarks.gpu_check.{name}")
            need_gpu()
            figures = rung.run()
    except NothingToRunOnError as error:
        out.write_text(json.dumps({"reason": str(error)}), "utf-8")
        return SKIPPED
    out.write_text(json.dumps(figures), "utf-8")
    return 1 if figures.get("failed") else 0


if __name__ == "__main__":
    sys.exit(main())
