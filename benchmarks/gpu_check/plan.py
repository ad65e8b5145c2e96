"""A plan from a shipped model: poan-build, its verdict, poan-bench, and trtexec beside it."""

import importlib.util
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.commands import bench, failures, poan
from benchmarks.gpu_check.rung import NothingToRunOnError, need_gpu
from poan_runtime.engines.tensorrt.build.plan import SMS, compute_capability
from poan_runtime.engines.tensorrt.library import MODULES
from poan_runtime.models.find import shipped_models
from poan_runtime.models.manifest import read_manifest


def run() -> dict[str, Any]:
    """Each installed flavour that knows this GPU."""
    capability = need_gpu().compute_capability
    flavours = [name for name, module in MODULES.items() if importlib.util.find_spec(module)]
    if capability not in map(compute_capability, SMS) and "tensorrt-rtx" in flavours:
        print(f"tensorrt-rtx has no target for compute capability {capability}")
        flavours.remove("tensorrt-rtx")
    if not flavours:
        raise NothingToRunOnError(f"no TensorRT here for compute capability {capability}")
    steps = [step for flavour in flavours for step in steps_of(flavour, capability)]
    return {"steps": steps, "failed": failures(*steps)}


def steps_of(flavour: str, capability: str) -> list[dict[str, Any]]:
    """Build, which judges too, then measure."""
    sm = ("--sm", capability.replace(".", "")) if flavour == "tensorrt-rtx" else ()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(shutil.copytree(shipped_models()[0], Path(scratch) / "model"))
        steps = [poan("build", folder, "--engine", flavour, *sm)]
        for file in read_manifest(folder).files:
            if file.kind == "plan":
                steps += [bench(folder / file.name), *trtexec(folder / file.name, flavour)]
    return steps


def trtexec(plan: Path, flavour: str) -> list[dict[str, Any]]:
    """What trtexec says of the same plan, where it is installed."""
    name = shutil.which("trtexec" if flavour == "tensorrt" else "tensorrt_rtx")
    if name is None:
        return []
    command = [name, f"--loadEngine={plan}", "--useCudaGraph", "--noDataTransfers"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [{"command": name, "status": done.returncode, "said": done.stdout.splitlines()[-40:]}]
