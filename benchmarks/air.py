"""How many tiles are air, and could be interpolated in place of being run?

    python -m benchmarks.air SCAN... --json benchmarks/results/air.json

A tile is air where no voxel of it exceeds the noise floor (background median + k sigma). If only
voxels that lie in air tiles alone are to change, a tile can be left out only where all that
overlap with it are air as well.
"""

import argparse
import contextlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.record import tell
from poan_runtime.images.formats import open_source
from poan_runtime.network import Network, Settings, load_network
from poan_runtime.signal.noise import air_floor, false_alarms
from poan_runtime.super_resolve import SuperResolution

SLICES = 16


def alone(air: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which tiles (n, rows, columns) are air together with their eight neighbours."""
    _, rows, columns = air.shape
    others = np.pad(~air, ((0, 0), (1, 1), (1, 1)))
    near = [others[:, i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
    return ~np.any(near, axis=0)


def count(path: Path, network: Network, k: float) -> dict[str, Any]:
    """Tiles of a scan's first volume: all, constant ones, air, and air among air."""
    with contextlib.closing(open_source(path)) as opened:
        run = SuperResolution(opened, network, Settings())
        assert run.measured is not None
        floor = air_floor(run.measured.noise, k)
        rows, columns = run.layout.rows.starts, run.layout.columns.starts
        found = {"tiles": 0, "constant": 0, "air": 0, "air_among_air": 0}
        for start in range(0, run.geometry.slices, SLICES):
            stop = min(start + SLICES, run.geometry.slices)
            slab = run.source.read_slices(run.geometry.axis, start, stop)
            tiles = run._runner.tiles(slab, 1.0)
            most = np.array(
                [tiles.windows[i, rows[r], columns[c]].max() for i, r, c in tiles.places]
            )
            air = (most <= floor).reshape(len(slab), len(rows), len(columns))
            found["tiles"] += air.size
            found["constant"] += sum(value is not None for value in tiles.constants)
            found["air"] += int(air.sum())
            found["air_among_air"] += int(alone(air).sum())
    noise = run.measured.noise
    return {"scan": path.name, "k": k, "floor": floor, "noise_from": noise.source, **found}


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m benchmarks.air", description=__doc__)
    p.add_argument("scans", nargs="+", type=Path)
    p.add_argument("--model", default="mr_x2")
    p.add_argument("-k", type=float, default=4.5)
    p.add_argument("--json", type=Path)
    args = p.parse_args()
    with load_network(args.model) as network:
        tile = network.model.manifest.tile
        found = {
            "model": args.model,
            "tile": tile,
            "false_alarms_per_tile": false_alarms(args.k, tile * tile),
            "scans": [count(path, network, args.k) for path in args.scans],
        }
    tell(found, args.json)


if __name__ == "__main__":
    main()
