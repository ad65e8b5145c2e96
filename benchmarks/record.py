"""Results of a benchmark: one JSON file with machine, versions, hashes and every raw sample."""

import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from poan_runtime.bench.machine import describe_machine, snapshot
from poan_runtime.files import WholeFile, sha256_of

RESULTS = Path(__file__).parent / "results"
VERSIONS = ("torch", "monai", "onnx", "onnxscript", "nibabel", "isal", "zlib-ng", "matplotlib")
"""Beside those that `describe_machine` names."""


ABSOLUTE = re.compile(r'"/[^"\n]*/(?=[^"/\n]+/[^"/\n]+")')
"""What leads to a file and its folder in an absolute path: it tells of a machine's folders, not of
what was measured, and stays out of a record."""


def machine() -> dict[str, Any]:
    """On what it ran: processor, cores, versions, load."""
    facts = describe_machine()
    for package in VERSIONS:
        try:
            facts["versions"][package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {**facts, "snapshot": snapshot()}


def commit() -> str | None:
    """The commit of the working tree, with a + if it was changed; None without git."""
    command = ["git", "describe", "--always", "--dirty=+", "--match", ""]
    try:
        done = subprocess.run(
            command, cwd=RESULTS.parent, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def busy_s() -> float:
    """Processor seconds that all programs have taken since the machine started (Linux)."""
    user, nice, system = Path("/proc/stat").read_text("utf-8").split()[1:4]
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")


def hashes(paths: Sequence[Path]) -> dict[str, str]:
    """SHA-256 of each file, by name."""
    return {path.name: sha256_of(path) for path in paths}


def read(path: Path) -> dict[str, Any] | None:
    """The document written before; None if there is none."""
    if not path.is_file():
        return None
    document: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return document


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Write the document whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with WholeFile(path) as file:
        text = json.dumps(document, indent=1, allow_nan=False)
        file.write(ABSOLUTE.sub('"', text).encode() + b"\n")


def tell(document: Mapping[str, Any], path: Path | None) -> None:
    """Print the document, and write it where a path is given."""
    print(json.dumps(document, indent=1))
    if path:
        write(path, document)


def median(samples: Sequence[float]) -> float:
    """Median of at least one sample."""
    return float(np.median(samples))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text in aligned columns; the first row is the header.

    >>> print(table([["name", "s"], ["a", "1.5"]]))
    name    s
    a     1.5
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
