"""What a batch costs on a server, against here: the same engine, with HTTP or gRPC in between.

    python -m benchmarks.served [MODEL ...]

Starts a real Triton (tests/runtime/engines/kserve/triton.py) that runs poan's engine in its
Python backend. The overhead is what a batch takes longer there than here, one at a time and in
turns, with a network that only repeats voxels. Then a whole scan each way, three times in turns,
with several batches under way, and with two servers on the same cores. Writes
results/served/served.json.
"""

import argparse
import contextlib
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import RESULTS, commit, machine
from poan_export.triton import Serving, add_version
from poan_runtime.engines.backend import Backend, EngineOptions
from poan_runtime.files import WholeFile
from poan_runtime.images.volume import Volume
from poan_runtime.models.find import find_model
from poan_runtime.network import load_network
from poan_runtime.super_resolve import upscale
from tests.runtime.engines.kserve.triton import Triton, serving
from tests.tiny.models import IDENTITY, graph, manifest

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 30
SCAN_ROUNDS = 3
SCAN = (160, 160, 16)
LOCAL = EngineOptions(backend="onnxruntime", precision="fp32")
"""What the server's environment has: no OpenVINO."""


def batch_times(backends: dict[str, Backend], batch: Any) -> dict[str, dict[str, float]]:
    """Median and quartiles of milliseconds a batch, in turns."""
    taken: dict[str, list[float]] = {name: [] for name in backends}
    answers = {name: backend.run(batch) for name, backend in backends.items()}
    first = next(iter(answers.values()))
    if not all(np.array_equal(answer, first) for answer in answers.values()):
        raise AssertionError("the answers differ")
    for _ in range(ROUNDS):
        for name, backend in backends.items():
            start = time.perf_counter()
            backend.run(batch)
            taken[name].append(1e3 * (time.perf_counter() - start))
    return {name: spread(values) for name, values in taken.items()}


def spread(values: list[float]) -> dict[str, float]:
    """Quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": middle, "low": low, "high": high}


def seconds(work: Callable[[], Volume]) -> tuple[float, Volume]:
    """How long it takes, and what comes out: the faster of two."""
    best, volume = float("inf"), None
    for _ in range(2):
        start = time.perf_counter()
        volume = work()
        best = min(best, time.perf_counter() - start)
    assert volume is not None
    return best, volume


@contextlib.contextmanager
def two_servers(repository: Path, work: Path) -> Iterator[tuple[Triton, Triton]]:
    """Two servers of one repository."""
    with serving(repository, work, ROOT) as one, serving(repository, work, ROOT) as two:
        yield one, two


def overhead(scale: int, tile: int, count: int) -> dict[str, Any]:
    """What a batch takes whose network does next to nothing: the way there and back."""
    with tempfile.TemporaryDirectory(prefix="poan-served-") as folder:
        work = Path(folder)
        export = write_repeater(work / "export", scale, tile)
        add_version(export, work / "models", Serving(runner="python"))
        with serving(work / "models", work, ROOT) as server:
            address = f"kserve://127.0.0.1:{server.http}/tiny_x2"
            with load_network(export, LOCAL) as local, load_network(address) as there:
                batch = np.ones((count, 1, tile, tile), np.float32)
                engines = {"local": local.opened.backend, "http": there.opened.backend}
                times = batch_times(engines, batch)
    return {
        "batch": list(batch.shape),
        "bytes": batch.nbytes * (1 + scale**2),
        "ms_a_batch": times,
        "overhead_ms": times["http"]["low"] - times["local"]["low"],
    }


def write_repeater(folder: Path, scale: int, tile: int) -> Path:
    """The export of a network that repeats voxels."""
    folder.mkdir()
    content = graph(scale, tile, IDENTITY).SerializeToString()
    (folder / "model.onnx").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    document = manifest(digest, scale=scale, tile=tile)
    (folder / "manifest.json").write_text(json.dumps(document))
    return folder


def whole_scan(model: str) -> dict[str, Any]:
    """Seconds of a scan here, on one server and on two that share this machine's cores."""
    with tempfile.TemporaryDirectory(prefix="poan-served-") as folder:
        work = Path(folder)
        export = find_model(model).path.parent
        add_version(export, work / "models", Serving(runner="python"))
        with two_servers(work / "models", work) as (one, two), contextlib.ExitStack() as stack:
            hosts = {
                "local": model,
                "one server": f"kserve://127.0.0.1:{one.http}/{export.name}",
                "two servers": f"kserve://127.0.0.1:{one.http},127.0.0.1:{two.http}/{export.name}",
            }
            options = {"local": LOCAL}
            networks = {
                name: stack.enter_context(load_network(where, options.get(name)))
                for name, where in hosts.items()
            }
            data = np.random.default_rng(0).uniform(1, 2, SCAN).astype(np.float32)
            scan = Volume(data=data, affine=np.diag([1, 1, 4, 1.0]))
            taken: dict[str, list[float]] = {name: [] for name in networks}
            volumes = []
            for name, network in list(networks.items()) * SCAN_ROUNDS:
                spent, volume = seconds(lambda network=network: upscale(scan, network))
                taken[name].append(round(spent, 2))
                volumes.append(volume.data)
    same = all(np.array_equal(volume, volumes[0]) for volume in volumes)
    return {"scan_seconds": taken, "same_voxels": same}


def main() -> None:
    """See the module."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("models", nargs="*", default=["t2_x2", "t2_x4"])
    args = p.parse_args()
    sizes = [(2, 32, 8), (2, 64, 8), (4, 64, 8), (2, 64, 32), (4, 64, 32)]
    found: dict[str, Any] = {
        "overhead": [overhead(*size) for size in sizes],
        "scans": {model: whole_scan(model) for model in args.models},
    }
    (RESULTS / "served").mkdir(exist_ok=True)
    document = {"commit": commit(), "machine": machine(), "scan": SCAN, **found}
    with WholeFile(RESULTS / "served/served.json") as file:
        file.write(json.dumps(document, indent=1).encode() + b"\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
