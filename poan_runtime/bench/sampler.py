"""Clocks, power and use of the GPU while something runs, as nvidia-smi tells them."""

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

FIELDS = ("clocks.sm", "power.draw", "utilization.gpu")
UNITS = ("MHz", "W", "%")
EVERY_MS = 200


@contextlib.contextmanager
def sampled(into: dict[str, Any], index: int = 0) -> Iterator[None]:
    """Add min, mean and max of each field to ``into`` at the end; nothing without nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        yield
        return
    command = ["nvidia-smi", f"--id={index}", f"--query-gpu={','.join(FIELDS)}"]
    command += ["--format=csv,noheader,nounits", f"--loop-ms={EVERY_MS}"]
    with tempfile.TemporaryFile() as lines:
        running = subprocess.Popen(command, stdout=lines, stderr=subprocess.DEVNULL)
        try:
            yield
        finally:
            running.terminate()
            running.wait()
            lines.seek(0)
            into.update(summary(lines.read().decode(errors="replace")))


def summary(text: str) -> Mapping[str, Mapping[str, float]]:
    """
    >>> summary("1980, 300.5, 97\\n1500, 310.5, [N/A]\\n")["clocks.sm"]
    {'min': 1500.0, 'mean': 1740.0, 'max': 1980.0}
    """
    rows = [line.split(",") for line in text.splitlines()]
    found = {}
    for place, field in enumerate(FIELDS):
        values = [number for row in rows if (number := _number(row, place)) is not None]
        if values:
            mean = sum(values) / len(values)
            found[field] = {"min": min(values), "mean": mean, "max": max(values)}
    return found


def _number(row: list[str], place: int) -> float | None:
    try:
        return float(row[place])
    except (IndexError, ValueError):
        return None
