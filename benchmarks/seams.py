"""How far tiled output is from the whole slice's, on real slices.

Attention and covariance are global over a tile, so a network sees less in a tile than in a slice:
the two answers differ, most where tiles meet. This reports the largest and the mean difference in
the intensity unit (1 is the 99.9th percentile), how much larger it is on the seams than
elsewhere, and the PSNR of both against HR.

    python -m benchmarks.seams --ckpt t2_x2.pt --data VALIDATION --json seams.json
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from poan_train.checkpoint import load_network
from poan_train.data import cached_pair, default_cache
from poan_train.degrade import GRID
from poan_train.evaluate import Tiling, layout_of, super_resolve
from poan_train.metrics import psnr
from poan_train.subjects import find_sources


def seam_mask(shape: tuple[int, ...], tiling: Tiling, scale: int) -> np.ndarray:
    """True for HR voxels (s h, s w) of slices (S, h, w) that several tiles share."""
    plan = layout_of(shape, scale, tiling)
    shares = []
    for axis in (plan.rows, plan.columns):
        count = np.zeros(scale * len(axis.index))
        for start, weights in zip(axis.starts, axis.weights, strict=True):
            count[scale * start : scale * start + len(weights)] += weights > 0
        shares.append(count[scale * axis.before :][: scale * axis.extent] > 1)
    return shares[0][:, None] | shares[1][None, :]


def compare(network: Any, pair: Any, facts: Any, tiling: Tiling, count: int) -> dict[str, Any]:
    """One volume's row, over ``count`` slices spread through it."""
    chosen = np.linspace(0, len(pair.lr) - 1, count + 2).astype(int)[1:-1]
    lr, hr = np.asarray(pair.lr[chosen]), np.asarray(pair.hr[chosen])
    grid = GRID[facts.degradation["method"]]
    tiled = super_resolve(network, lr, facts.scale, grid, tiling)
    whole = super_resolve(network, lr, facts.scale, grid, replace(tiling, tile=0))
    difference = np.abs(tiled - whole)
    seams = seam_mask(lr.shape, tiling, facts.scale)
    return {
        "volume": pair.source.path.name,
        "slices": [int(c) for c in chosen],
        "largest": float(difference.max()),
        "mean": float(difference.mean()),
        "mean_on_seams": float(difference[:, seams].mean()),
        "mean_elsewhere": float(difference[:, ~seams].mean()),
        "psnr_tiled": psnr(hr, tiled),
        "psnr_whole": psnr(hr, whole),
    }


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m benchmarks.seams", description=__doc__)
    p.add_argument("--ckpt", type=Path, required=True)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--slices", type=int, default=3, help="slices per volume")
    p.add_argument("--json", type=Path)
    args = p.parse_args(argv)
    network, facts = load_network(args.ckpt)
    tiling = Tiling.of(facts.arch)
    rows = []
    for source in find_sources(args.data, facts.contrast):
        method = facts.degradation["method"]
        pair = cached_pair(source, facts.scale, method, None, default_cache())
        rows.append(compare(network, pair, facts, tiling, args.slices))
        print(json.dumps(rows[-1]))
    if args.json:
        content = {"checkpoint": args.ckpt.name, **asdict(tiling), "volumes": rows}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
