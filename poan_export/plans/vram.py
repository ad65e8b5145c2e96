"""``--vram``: the largest tile and batch whose plan fits into a GPU's memory, by building it."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from poan_export.trace.onnx_export import MOST_BATCH
from poan_runtime.engines.backend import LANES
from poan_runtime.engines.tensorrt.build.plan import full_batches
from poan_runtime.errors import PoanError
from poan_runtime.models.manifest import BatchRange

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
CUDA_BYTES = 512 * 2**20
"""Set aside for the CUDA context and the library's code: an assumption, not a measurement."""

Build = Callable[[int, BatchRange], Mapping[str, Any]]
"""(tile, batch) to the report of a plan that was built for them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """The choice, and the bytes that it takes on the device."""

    tile: int
    batch: BatchRange
    device_bytes: int


def parse_bytes(text: str) -> int:
    """
    >>> parse_bytes("4GiB"), parse_bytes("1.5 GB"), parse_bytes("300")
    (4294967296, 1500000000, 300)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in UNITS:
        raise PoanError(f"--vram: expected a size such as 4GiB, got {text!r}")
    return int(float(match[1]) * UNITS[match[2].upper()])


def device_bytes(report: Mapping[str, Any], tile: int, scale: int, most: int) -> int:
    """Device memory of a running engine: weights, and per lane activations and its tiles."""
    tiles = 4 * most * tile**2 * (1 + scale**2)
    activations, weights = report["activation_bytes"], report["weights_bytes"]
    if activations is None or weights is None:
        raise PoanError("--vram: this builder's log does not tell memory; give --tile and --batch")
    return CUDA_BYTES + int(weights) + LANES * (int(activations) + tiles)


def fit(vram: int, tiles: Sequence[int], scale: int, build: Build) -> Fit:
    """The largest of ``tiles`` for which a batch of one fits, then the largest batch.

    Each candidate is built, since only the builder knows. Memory grows about linearly with the
    batch, so that two builds guess the largest one; a third proves it, else it is made smaller.
    """
    needed = 0
    for tile in sorted(tiles, reverse=True):

        def measured(most: int, tile: int = tile) -> int:
            return device_bytes(build(tile, full_batches(most)), tile, scale, most)

        needed = measured(1)
        if needed > vram:
            continue
        most, bytes_most = _largest_batch(vram, needed, measured)
        batch = BatchRange(min=1, opt=most, max=most)
        return Fit(tile=tile, batch=batch, device_bytes=bytes_most)
    raise PoanError(
        f"--vram: a batch of one with tile {min(tiles)} needs {needed / 2**20:.0f} MiB, "
        f"got {vram / 2**20:.0f} MiB"
    )


def _largest_batch(vram: int, one: int, measured: Callable[[int], int]) -> tuple[int, int]:
    """(largest batch that fits, its bytes), at most `MOST_BATCH`."""
    two = measured(2)
    if two > vram:
        return 1, one
    most = min(MOST_BATCH, 1 + (vram - one) // max(1, two - one))
    while most > 2:
        found = measured(most)
        if found <= vram:
            return most, found
        most = max(2, min(most - 1, 1 + int((vram - one) / (found - one) * (most - 1))))
    return 2, two
