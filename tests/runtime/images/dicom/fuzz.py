"""Breaks DICOM files at seeded places.

``python -m tests.runtime.images.dicom.fuzz FOLDER --count 10000``

Every broken file must be read, or refused in one line, within bounded memory. Prints what came
of them; exits 1 with the seed of the first one that did something else.
"""

import argparse
import collections
import resource
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from poan_runtime.errors import PoanError
from poan_runtime.images.dicom.read import open_dicom

MEMORY = 4 << 30


def broken(content: bytes, seed: int) -> bytes:
    """The content with bytes changed, cut, doubled or a length field made huge."""
    random = np.random.default_rng(seed)
    data = bytearray(content)
    at = int(random.integers(132, len(data)))
    match int(random.integers(6)):
        case 0:
            del data[at:]
        case 1:
            for place in random.integers(132, len(data), 20):
                data[place] = int(random.integers(256))
        case 2:
            data[at : at + 4] = b"\xff\xff\xff\xff"
        case 3:
            data[at : at + 4] = int(random.integers(1 << 31)).to_bytes(4, "little")
        case 4:
            del data[at : at + int(random.integers(1, 64))]
        case _:
            data[at:at] = data[at : at + int(random.integers(1, 4096))]
    if random.integers(2):  # most of a file is pixels: aim at its header too
        header = int(random.integers(132, min(4000, len(data))))
        data[header] = int(random.integers(256))
    return bytes(data)


def outcome(path: Path) -> str:
    """``read``, or the refusal without the path; anything else is raised."""
    try:
        with open_dicom(path) as source:
            slices = source.read_slices(2, 0, source.shape[2])
        assert slices.shape == (source.shape[2], *source.shape[:2])
    except PoanError as error:
        line = str(error)
        assert "\n" not in line
        assert len(line) < 1000
        return line.replace(str(path), "")[:40]
    return "read"


def main(argv: Sequence[str] | None = None) -> int:
    """Break ``--count`` files of a folder."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("folder", type=Path)
    p.add_argument("--count", type=int, default=10_000)
    args = p.parse_args(argv)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    files = sorted(file for file in args.folder.rglob("*") if file.is_file())
    outcomes: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "broken.dcm"
        for seed in range(args.count):
            file = files[seed % len(files)]
            path.write_bytes(broken(file.read_bytes(), seed))
            try:
                outcomes[outcome(path)] += 1
            except Exception as error:
                sys.stderr.write(f"seed {seed}, {file.name}: {error!r}\n")
                return 1
    for line, count in outcomes.most_common():
        sys.stdout.write(f"{count:6} {line}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
