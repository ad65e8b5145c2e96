"""The paper's Fig. 3: the methods of Table 1 side by side on one slice, with a crop of each.

    python -m benchmarks.figure3 --rows tables --val VAL --contrast T1 T2 --scale 4

takes the networks that ``benchmarks.paper_tables`` trained into ``tables`` and writes
``figure3_x4.png`` there: a line per contrast, the HR slice with the crop's frame, the crop of HR
and of each method with the PSNR and SSIM of its slice (the slice's peak).
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from benchmarks.paper_tables.report import place_of
from benchmarks.paper_tables.rows import CLASSICAL
from benchmarks.paper_tables.summary import read_rows
from poan_runtime import extras
from poan_runtime.errors import PoanError
from poan_train.checkpoint import load_network
from poan_train.convention import Preparation
from poan_train.data import Pair, cached_pair, default_cache
from poan_train.degrade import GRID, Array
from poan_train.evaluate import Tiling, super_resolve
from poan_train.metrics import psnr, ssim
from poan_train.networks import SCALES
from poan_train.subjects import CONTRASTS, find_sources


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.figure3",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--rows", type=Path, required=True, help="paper_tables' folder")
    p.add_argument("--val", type=Path, required=True, help="folder of test volumes")
    p.add_argument("--contrast", nargs="+", choices=CONTRASTS, default=["T1", "T2"])
    p.add_argument("--scale", type=int, choices=SCALES, default=4)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--crop", type=int, default=64, help="side in HR voxels")
    p.add_argument("--out", type=Path, help="PNG (default: figure3_xN.png in --rows)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    out = args.out or args.rows / f"figure3_x{args.scale}.png"
    try:
        lines = {contrast: panels(args, contrast) for contrast in args.contrast}
    except PoanError as error:
        print(f"figure3: {error}", file=sys.stderr)
        return 2
    draw(lines, args.crop, args.scale, out)
    print(out)
    return 0


def panels(args: argparse.Namespace, contrast: str) -> dict[str, Array]:
    """HR and each method's SR of the middle slice of the first test volume: name -> (H, W)."""
    rows = [row for row in read_rows(args.rows) if shown(row, contrast, args.scale, args.seed)]
    if not rows:
        raise PoanError(f"{args.rows}: no row of Table 1 on {contrast} x{args.scale}")
    rows.sort(key=lambda row: place_of(1, row["row"]["label"]))
    protocol = rows[0]["protocol"]
    preparation = Preparation(**protocol.get("preparation", {}))
    source, method = find_sources(args.val, contrast)[0], protocol["degradation"]
    pair = cached_pair(source, args.scale, method, None, default_cache(), preparation)
    at = len(pair.hr) // 2
    found = {"HR": np.asarray(pair.hr[at])}
    for row in rows:
        found[row["row"]["label"]] = estimate(row, pair, at)
    return found


def shown(row: Mapping[str, Any], contrast: str, scale: int, seed: int) -> bool:
    r = row["row"]
    same = (r["table"], r["contrast"], r["scale"]) == (1, contrast, scale)
    return same and not r.get("scanner") and (r["seed"] == seed or r["arch"] in CLASSICAL)


def estimate(row: Mapping[str, Any], pair: Pair, at: int) -> Array:
    """SR (H, W) of slice ``at`` by the row's method, tiled as the row was measured.

    Raises PoanError where the row's checkpoint is not there any more.
    """
    r, protocol, lr = row["row"], row["protocol"], np.asarray(pair.lr[at : at + 1])
    if r["arch"] in CLASSICAL:
        with extras.needs("skimage", "classical"):
            from poan_train.classical import CLASSICAL as METHODS
        return np.asarray(METHODS[r["arch"]](lr, r["scale"], protocol["degradation"])[0])
    checkpoint = Path(row["trained"]["checkpoint"])
    if not checkpoint.is_file():
        raise PoanError(f"{checkpoint}: the checkpoint of {r['label']} is gone; make the row again")
    network, facts = load_network(checkpoint)
    tiling = Tiling.of(facts.arch, protocol["tile"])
    grid, plus = GRID[protocol["degradation"]], r["arch"].endswith("+")
    return super_resolve(network, lr, r["scale"], grid, tiling, self_ensemble=plus)[0]


def busiest(hr: Array, side: int) -> tuple[int, int]:
    """Top and left of the square of ``side`` with the largest sum of gradients, on a grid of 8."""
    edges = np.abs(np.gradient(hr)).sum(axis=0)
    total = np.pad(edges.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    h, w = (n - side for n in hr.shape)
    y, x = np.mgrid[0 : max(1, h + 1) : 8, 0 : max(1, w + 1) : 8]
    sums = total[y + side, x + side] - total[y, x + side] - total[y + side, x] + total[y, x]
    best = np.unravel_index(int(sums.argmax()), sums.shape)
    return int(y[best]), int(x[best])


def draw(lines: Mapping[str, Mapping[str, Array]], side: int, scale: int, out: Path) -> None:
    """A line per contrast."""
    columns = 1 + max(len(found) for found in lines.values())
    figure = Figure(figsize=(1.6 * columns, 2.1 * len(lines)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(lines), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for line, (contrast, found) in zip(grid, lines.items(), strict=True):
        hr = found["HR"]
        size = min(side, *hr.shape)
        top, left = busiest(hr, size)
        grey = {"cmap": "gray", "vmin": 0, "vmax": float(np.percentile(hr, 99.8))}
        line[0].imshow(hr, **grey)
        frame = Rectangle((left, top), size, size, fill=False, edgecolor="tab:red")
        line[0].add_patch(frame)
        line[0].set_title(f"{contrast} x{scale}", fontsize="small")
        for axes, (name, image) in zip(line[1:], found.items(), strict=False):
            axes.imshow(image[top : top + size, left : left + size], **grey)
            axes.set_title(caption(name, hr, image), fontsize="small")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)


def caption(name: str, hr: Array, image: Array) -> str:
    """The method's name, and PSNR / SSIM of its slice."""
    if image is hr:
        return name
    return f"{name}\n{psnr(hr[None], image[None]):.2f}/{ssim(hr[None], image[None]):.4f}"


if __name__ == "__main__":
    raise SystemExit(main())
