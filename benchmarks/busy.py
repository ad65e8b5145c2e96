"""Share of the time in which a GPU would be busy: the run loop against a slow stand-in.

    [chrt -r 1] python -m benchmarks.busy [--ms 4] [--scans 5] [--json OUT.json]

The stand-in takes batches in order, as a device does, and is busy for so many milliseconds with
each; meanwhile it holds neither a core nor Python's lock. What is measured is everything else:
reading, tiling, blending, comparing, writing, and what lies between slabs and between scans.
Other programs' share of the cores stands beside it: where they are at work, `chrt -r 1` puts this
one before them, which is as near as it comes to an idle machine.
"""

import argparse
import dataclasses
import functools
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from benchmarks import record
from poan_runtime.commands.overlap import Turns, overlapped
from poan_runtime.engines.backend import Backend, OpenedBackend, Tiles
from poan_runtime.models.find import Model, find_model
from poan_runtime.network import Network
from poan_runtime.super_resolve import upscale_file

SHAPE = (240, 240, 48)
TILE, BATCH = 60, 8


class SlowDevice(Backend):
    """Busy for ``ms`` with each batch, one after the other; remembers when.

    A batch begins when it is given or when the one before ends, and ends ``ms`` later, whatever
    the host does: like a device, it needs no core and no lock of Python's for that.
    """

    def __init__(self, ms: float, scale: int) -> None:
        self.ms = ms
        self.spans: list[tuple[float, float]] = []
        self._answer = np.zeros((BATCH, 1, scale * TILE, scale * TILE), np.float32)
        self._lock = threading.Lock()

    def start(self, batch: Tiles) -> Callable[[], Tiles]:
        """See `Backend.start`."""
        with self._lock:
            begin = max(time.perf_counter(), self.spans[-1][1] if self.spans else 0.0)
            end = begin + self.ms / 1e3
            self.spans.append((begin, end))

        def wait() -> Tiles:
            time.sleep(max(0.0, end - time.perf_counter()))
            return self._answer[: len(batch)].copy()

        return wait

    def run(self, batch: Tiles) -> Tiles:
        """See `Backend.run`."""
        return self.start(batch)()

    def busy_s(self) -> float:
        """Seconds in which it works."""
        return len(self.spans) * self.ms / 1e3

    def busy_share(self) -> float:
        """Of the time from the first batch's start to the last one's end."""
        return self.busy_s() / (self.spans[-1][1] - self.spans[0][0])


def stand_in(ms: float) -> tuple[Network, SlowDevice]:
    """A shipped model's facts at `TILE`, and the device in the engine's place."""
    model = find_model("t2_x2")
    manifest = dataclasses.replace(
        model.manifest,
        tile=TILE,
        batch=dataclasses.replace(model.manifest.batch, min=1, opt=BATCH, max=BATCH),
    )
    device = SlowDevice(ms, manifest.scale)
    opened = OpenedBackend(
        backend=device, name="stand-in", device="cuda:0 (stand-in)", version="0", reason=""
    )
    faked: Model = dataclasses.replace(model, manifest=manifest)
    return Network(model=faked, opened=opened, load_s=0.0), device


def measure(ms: float, scans: int, suffix: str) -> dict[str, Any]:
    """So many scans, each to a file of its own format; the share, and the seconds of all."""
    network, device = stand_in(ms)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        paths = [folder / f"scan{index}{suffix}" for index in range(scans)]
        for index, path in enumerate(paths):
            voxels = np.random.default_rng(index).integers(1, 1000, SHAPE).astype(np.int16)
            nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 3.0, 1.0])), path)
        start, others = time.perf_counter(), record.busy_s() - time.process_time()
        for done in overlapped([functools.partial(one_scan, path, network) for path in paths]):
            done()
        seconds = time.perf_counter() - start
        others = record.busy_s() - time.process_time() - others
    return {
        "scans": scans,
        "format": suffix,
        "batches": len(device.spans),
        "busy_share": device.busy_share(),
        "busy_share_start_included": device.busy_s() / seconds,
        "seconds": seconds,
        "others_share_of_cores": others / seconds / (os.cpu_count() or 1),
    }


def before_others() -> bool:
    """Whether this process runs in a real-time class, before all ordinary ones."""
    return os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR)


def one_scan(path: Path, network: Network, turns: Turns) -> dict[str, Any]:
    """A scan through the run loop, to a file of its own format."""
    target = path.with_name(f"fine-{path.name}")
    upscale_file(path, target, network, consumers=[turns.check], turn=turns.lock)
    return {}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    p.add_argument("--ms", type=float, default=4.0, help="a batch's time on the device")
    p.add_argument("--scans", type=int, default=5)
    p.add_argument("--json", type=Path)
    args = p.parse_args()
    found = [
        measure(args.ms, args.scans, ".nii"),
        measure(args.ms, args.scans, ".nii.gz"),
        measure(args.ms, 1, ".nii"),
    ]
    for row in found:
        print(
            f"{row['scans']} x {row['format']:7} {row['batches']:5} batches  "
            f"busy {row['busy_share']:.1%}, with the start {row['busy_share_start_included']:.1%}, "
            f"{row['seconds']:.2f} s, others took {row['others_share_of_cores']:.0%} of the cores"
        )
    if args.json is not None:
        document = {"ms": args.ms, "shape": SHAPE, "before_others": before_others(), "runs": found}
        args.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
