"""What does interpolating tiles of air save, and what does it change?

    python -m benchmarks.air VALIDATION_FOLDER [--rounds N] [--every N]

A tile is air where no voxel exceeds the noise floor (`poan_runtime.as_measured.air_in`). For each
validation scan as it comes: tiles run and seconds in the network without skipping, with constant
tiles skipped alone, and with air skipped too, in turn, the smallest of N rounds. For each scan
and each of the five kinds of LR made of it: PSNR within the head without and with it, and with all
tiles run; and the largest change within the head, over the scan's intensity unit.
"""

import argparse
import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import record
from poan_runtime.images.formats import open_source
from poan_runtime.images.source import ArraySink, Source
from poan_runtime.images.volume import Volume
from poan_runtime.models.find import auto_model
from poan_runtime.network import Network, Settings, load_network
from poan_runtime.signal.noise import false_alarms
from poan_runtime.super_resolve import Outcome, upscale, upscale_file
from poan_train.acquire import KINDS
from poan_train.data import Pair, make_pair
from poan_train.kinds import case_of
from poan_train.metrics import psnr_within
from poan_train.subjects import find_sources

WAYS = ("all", "constant", "air")
"""What is skipped: nothing, constant tiles, these and air."""
RESULT = record.RESULTS / "air.json"


def skipping(network: Network, way: str, k: float) -> tuple[Network, Settings]:
    """The network and the settings of one of `WAYS`."""
    model = network.model
    told = replace(model.manifest, air_k=k if way == "air" else None)
    settings = Settings(skip=way != "all")
    return replace(network, model=replace(model, manifest=told)), settings


def run_whole(source: Source, network: Network, settings: Settings) -> tuple[Outcome, float]:
    """Super-resolve a scan into memory; what it did, and seconds."""
    start = time.perf_counter()
    outcome = upscale_file(source, ArraySink(), network, settings)
    return outcome, time.perf_counter() - start


def saved(path: Path, network: Network, k: float, rounds: int) -> dict[str, Any]:
    """Tiles and seconds of a scan as it comes, by way."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    tiles = {}
    with contextlib.closing(open_source(path)) as source:
        for turn in range(rounds):
            for way in WAYS[turn % 3 :] + WAYS[: turn % 3]:
                outcome, took = run_whole(source, *skipping(network, way, k))
                seconds[way].append(took)
                tiles[way] = outcome.timings.tiles_run
    least = {way: min(found) for way, found in seconds.items()}
    return {
        "scan": path.name,
        "tiles_run": tiles,
        "seconds": least,
        "rounds": seconds,
        "tiles_of_constant": tiles["air"] / tiles["constant"],
        "seconds_of_constant": least["air"] / least["constant"],
    }


def super_resolved(lr: NDArray[Any], network: Network, settings: Settings) -> NDArray[Any]:
    """SR (n, s h, s w) of LR (n, h, w)."""
    volume = Volume(data=np.moveaxis(lr, 0, 2), affine=np.diag([1.0, 1.0, 5.0, 1.0]))
    return np.moveaxis(upscale(volume, network, replace(settings, axis=2)).data, 2, 0)


def changed(pair: Pair, network: Network, k: float, every: int) -> Iterator[dict[str, Any]]:
    """For each kind of LR: PSNR in dB within the head by way, and the largest change there."""
    for kind in KINDS:
        case = case_of(pair, network.model.manifest.scale, kind, every)
        made = {way: super_resolved(case.lr, *skipping(network, way, k)) for way in WAYS}
        psnr = {way: psnr_within(case.hr, image, case.mask) for way, image in made.items()}
        apart = np.abs(made["air"] - made["constant"])[case.mask]
        yield {
            "scan": pair.source.path.name,
            "kind": kind,
            "psnr": psnr,
            "change_db": psnr["air"] - psnr["constant"],
            "largest_change": float(apart.max(initial=0)),
        }


def main(argv: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(prog="python -m benchmarks.air", description=__doc__)
    p.add_argument("folder", type=Path, help="validation volumes")
    p.add_argument("--scale", type=int, default=2)
    p.add_argument("-k", type=float, default=4.5, help="sigma above the air's median")
    p.add_argument("--rounds", type=int, default=3, help="of each way of running a scan; 0: none")
    p.add_argument("--every", type=int, default=4, help="one slice in N for PSNR (default 4)")
    p.add_argument("--json", type=Path, default=RESULT)
    args = p.parse_args(argv)
    savings: list[dict[str, Any]] = []
    changes: list[dict[str, Any]] = []
    sources = find_sources(args.folder, "all")
    tile = 0
    for source in sources:
        with load_network(auto_model(f"auto_x{args.scale}", source.contrast)) as network:
            tile = network.model.manifest.tile
            if args.rounds:
                savings.append(saved(source.path, network, args.k, args.rounds))
                print(savings[-1], flush=True)
            pair = make_pair(source, args.scale, "truncated", None)
            for row in changed(pair, network, args.k, args.every):
                changes.append(row)
                print(row, flush=True)
    document = {
        "machine": record.machine(),
        "commit": record.commit(),
        "scans": record.hashes([source.path for source in sources]),
        "k": args.k,
        "tile": tile,
        "false_alarms_per_tile": false_alarms(args.k, tile * tile),
        "largest_change_db": max(abs(row["change_db"]) for row in changes),
        "saved": savings,
        "changed": changes,
    }
    record.write(args.json, document)
    print({key: document[key] for key in ("false_alarms_per_tile", "largest_change_db")})


if __name__ == "__main__":
    main()
