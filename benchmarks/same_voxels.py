"""Do two checkouts of poan write the same? Headers and voxels are compared bit for bit.

    python -m benchmarks.same_voxels BEFORE AFTER --scans FOLDER [FOLDER ...] --json OUT.json

Each scan is run through each model by both checkouts, each in a process of its own. What is
compared is what lies in the gzip container, whose own bytes may differ. A scan that is refused
must be refused by both; other words for it are counted. Scans with more voxels than
``--most-voxels`` are cut to a few slices from the middle of their third axis first, by nibabel;
the record says which.

Both run the model files of BEFORE (``--models``, folders in its poan_runtime/models). Defaults that
were changed since are set back by ``--options-after``, as

    --options '--backend onnxruntime --no-skip'
    --options-after '--native off --keep-measured off --keep-negative --saturate --labels'
"""

import argparse
import gzip
import hashlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, HeaderTypeError

from benchmarks.record import commit

UNREADABLE = (
    *(ImageFileError, HeaderDataError, HeaderTypeError),
    *(OSError, ValueError, EOFError, MemoryError, zlib.error),
)
MODELS = ("t1_x2", "t1_x4", "t2_x2", "t2_x4")
GZIP_MAGIC = b"\x1f\x8b"


def command_of(checkout: Path) -> str:
    """The module of `poan-run` in a checkout, which had another name once."""
    rooms = checkout / "poan_runtime/commands/run.py"
    return "poan_runtime.commands.run" if rooms.is_file() else "poan_runtime.cli"


def run(
    checkout: Path, model: Path, scan: Path, folder: Path, options: Sequence[str]
) -> dict[str, Any]:
    """Exit status, hash and size of the unpacked output, and what was said of a refusal."""
    output = folder / "out.nii.gz"
    output.unlink(missing_ok=True)
    done = subprocess.run(
        [
            *(sys.executable, "-m", command_of(checkout), str(model), str(scan)),
            *("-o", str(output), *options),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
    )
    found: dict[str, Any] = {"status": done.returncode, "bytes": None, "sha256": None}
    if output.is_file():
        content = unpacked(output)
        found |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    if done.returncode != 0:
        found["said"] = done.stderr.strip().replace(str(folder), "")
    return found


def unpacked(path: Path) -> bytes:
    """Header and voxels of a file, out of its gzip container if it has one."""
    content = path.read_bytes()
    return gzip.decompress(content) if content.startswith(GZIP_MAGIC) else content


def cut(scan: Path, folder: Path, most_voxels: int) -> Path:
    """The scan, or a copy of a few slices of it if it is large and nibabel can read it."""
    try:
        unpacked(scan)  # a damaged file stays as it is
        image: Any = nibabel.load(scan)
        shape = image.shape
        if np.prod(shape, dtype=np.int64) <= most_voxels or len(shape) < 3:
            return scan
        slices = max(1, int(most_voxels // max(1, np.prod(shape) // shape[2])))
        start = (shape[2] - slices) // 2
        np.asarray(image.dataobj)
        smaller = folder / scan.name
        nibabel.save(image.slicer[:, :, start : start + slices], smaller)
    except UNREADABLE:
        return scan
    return smaller


def compare(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per scan and model."""
    rows = []
    options, more = shlex.split(arguments.options), shlex.split(arguments.options_after)
    paths = sorted(path for folder in arguments.scans for path in folder.iterdir())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path in paths:
            scan = cut(path, folder, arguments.most_voxels)
            for model in arguments.models:
                file = arguments.before / "poan_runtime/models" / model
                before = run(arguments.before, file, scan, folder, options)
                after = run(arguments.after, file, scan, folder, [*options, *more])
                row = {"scan": f"{path.parent.name}/{path.name}", "model": model}
                same = all(before[key] == after[key] for key in ("status", "bytes", "sha256"))
                row |= {"cut": scan != path, "same": same, "words": before == after}
                rows.append({**row, "before": before, "after": after})
                sys.stdout.write(f"{'same' if same else 'DIFFERS':8}{row}\n")
                sys.stdout.flush()
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """0 if every pair is the same, 1 if one differs, 2 if nothing was written by either."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.same_voxels", description=__doc__)
    p.add_argument("before", type=Path, help="a checkout")
    p.add_argument("after", type=Path, help="another one")
    p.add_argument("--scans", type=Path, nargs="+", required=True, help="folders of scans")
    p.add_argument("--models", nargs="+", default=MODELS)
    p.add_argument("--most-voxels", type=int, default=300_000)
    p.add_argument("--options", default="", help="of both runs")
    p.add_argument("--options-after", default="", help="of the second checkout's")
    p.add_argument("--json", type=Path)
    arguments = p.parse_args(argv)
    arguments.before, arguments.after = (
        folder.resolve() for folder in (arguments.before, arguments.after)
    )
    rows = compare(arguments)
    written = sum(row["after"]["sha256"] is not None for row in rows)
    differing = [row for row in rows if not row["same"]]
    reworded = sum(row["same"] and not row["words"] for row in rows)
    sys.stdout.write(
        f"{len(rows)} runs, {written} written, {len(rows) - written} refused; "
        f"{len(differing)} differ, {reworded} refused in other words\n"
    )
    if arguments.json is not None:
        asked = {"options": arguments.options, "options_after": arguments.options_after}
        document = {"commit": commit(), "most_voxels": arguments.most_voxels, **asked, "runs": rows}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    if not written:
        return 2
    return 1 if differing else 0


if __name__ == "__main__":
    raise SystemExit(main())
