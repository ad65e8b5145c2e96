"""Many small scans in one process: are memory and open files flat?

python -m benchmarks.soak --scans 2000 --json benchmarks/results/soak.json
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

import poan_runtime
from benchmarks.record import tell

SHAPE = (48, 40, 6)
SAMPLES = 20


def resident_mib() -> float:
    """Memory of this process that is in RAM, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def soak(scans: int, model: str) -> dict[str, Any]:
    """Super-resolve ``scans`` scans; memory and open files at `SAMPLES` moments."""
    samples: list[dict[str, float]] = []
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch, poan_runtime.load_network(model) as network:
        folder = Path(scratch)
        random = np.random.default_rng(0)
        for index in range(scans):
            scan = folder / ("scan.nii.gz" if index % 2 else "scan.nii")
            voxels = random.integers(0, 1000, SHAPE).astype(np.int16)
            nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 4.0, 1.0])), scan)
            poan_runtime.upscale_file(scan, folder / "out.nii.gz", network)
            if (index + 1) % max(1, scans // SAMPLES) == 0:
                files = len(os.listdir("/proc/self/fd"))
                samples.append(
                    {"scans": index + 1, "resident_mib": round(resident_mib(), 1), "files": files}
                )
        engine = f"{network.opened.name} {network.opened.version}"
    return {
        "model": model,
        "engine": engine,
        "shape": SHAPE,
        "seconds": round(time.perf_counter() - start, 1),
        "samples": samples,
    }


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    p.add_argument("--scans", type=int, default=2000)
    p.add_argument("--model", default="t2_x2")
    p.add_argument("--json", type=Path)
    args = p.parse_args()
    found = soak(args.scans, args.model)
    tell(found, args.json)


if __name__ == "__main__":
    main()
