"""Memory stays bounded whatever the volume."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from poan_runtime.commands import run as cli

ROOT = Path(cli.__file__).resolve().parents[2]


SLAB_BYTES = 1 << 22
CODE = """
import sys
from poan_runtime.commands import run as cli
from poan_runtime.tiles import layout as tiling
tiling.SLAB_BYTES = int(sys.argv[1])
raise SystemExit(cli.main(sys.argv[2:]))
"""


def peak_bytes(model: Path, scan: Path, report: Path, axis: str) -> int:
    """Largest resident size of a run in a process of its own, as its report has it."""
    arguments = [model, scan, "--report", report, "--axis", axis, "--threads", "1", "--batch", "4"]
    arguments += ["--labels", "--overwrite"]  # two values look like a label map
    subprocess.run(
        [sys.executable, "-c", CODE, str(SLAB_BYTES), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
    )
    return int(json.loads(report.read_text())["system"]["peak_memory_bytes"])


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["0", "2"])
def test_a_volume_four_times_as_large_takes_no_more_memory(
    axis: str, make_model: Any, make_scan: Any, tmp_path: Path
) -> None:
    model = make_model(tile=64, halo=0, overlap=0)
    peaks = []
    for slices in (48, 192):
        shape = (slices, 256, 192) if axis == "0" else (256, 192, slices)
        data = np.zeros(shape, np.int16)
        data[::64, ::64] = 100
        scan = make_scan(f"scan{slices}.nii.gz", data=data)
        peaks.append(peak_bytes(model, scan, tmp_path / "report.json", axis))
    # 113 MB more of float32 come out. What may grow is the allocator's slack, and up to 8 MiB,
    # twice, in which slices across other axes are put in file order.
    assert peaks[1] - peaks[0] < 30e6, peaks
