"""How near to the machine's limit each part of the network runs.

    python -m benchmarks.limit --model poan_t2_x2

Each part of the exported graph (`benchmarks.parts`) runs in each engine as `poan-run` does, every
core on a tile of its own, and is set against the fastest matrix product measured in the same run
and precision. The engines and parts take turns over several rounds.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import record
from benchmarks.engines import CPU_ENGINES, PRECISION, load, seconds_per_tile
from benchmarks.parts import Part, cut, features_at, macs_of, read_for_one_tile
from benchmarks.peak import cpu_peaks, gpu_peaks
from poan_runtime.errors import PoanError
from poan_runtime.models.find import find_model

WHOLE = "whole network"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.limit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--model", required=True, help="as for poan-run; its fp32 ONNX file is cut")
    p.add_argument("--engines", default=",".join(CPU_ENGINES), help="with commas")
    p.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--seconds", type=float, default=1.0, help="least per part, engine and round")
    p.add_argument("--out", type=Path, help="JSON (default: results/limit/MODEL.json)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        document = measure(args)
    except PoanError as error:
        print(f"limit: {error}", file=sys.stderr)
        return 2
    path = args.out or record.RESULTS / "limit" / f"{document['model']['name']}.json"
    record.write(path, document)
    write_plot(path.with_suffix(".png"), document)
    print(text(document))
    return 0


def measure(args: argparse.Namespace) -> dict[str, Any]:
    model = find_model(args.model)
    tile = model.manifest.tile
    graph = read_for_one_tile(model.path, tile)
    whole = Part(name=WHOLE, belongs_to=WHOLE, graph=graph, macs=macs_of(graph))
    parts = [whole, *cut(graph)]
    lr = np.random.default_rng(0).random((1, 1, tile, tile), np.float32)
    lr_name = graph.graph.input[0].name
    inner = sorted({name for part in parts for name in part.inputs} - {lr_name})
    values = {lr_name: lr, **features_at(graph, inner, lr)}
    engines = args.engines.split(",")
    loaded = {
        (engine, part.name): load(engine, part.graph, args.cores)
        for engine in engines
        for part in parts
    }
    peaks = [cpu_peaks(args.seconds / 4, cores=args.cores)]
    samples: dict[str, dict[str, list[float]]] = {
        engine: {part.name: [] for part in parts} for engine in engines
    }
    for _ in range(args.rounds):
        for part in parts:
            feed = {name: values[name] for name in part.inputs}
            for engine in engines:
                taken = seconds_per_tile(loaded[engine, part.name], feed, args.seconds)
                samples[engine][part.name].append(taken)
    peaks.append(cpu_peaks(args.seconds / 4, cores=args.cores))
    peak = {
        precision: max(value for run in peaks for value in run[precision].values())
        for precision in peaks[0]
    }
    return {
        "machine": record.machine(),
        "model": {"name": model.manifest.name, "sha256": model.file.sha256, "tile": tile},
        "cores": args.cores,
        "peaks_before_and_after": peaks,
        "peak": peak,
        "gpu_peaks": gpu_peaks(),
        "seconds_per_tile": samples,
        "rows": rows(parts, samples, peak),
    }


def rows(
    parts: Sequence[Part], samples: dict[str, dict[str, list[float]]], peak: dict[str, float]
) -> list[dict[str, Any]]:
    """One row per engine and part of the network; ``sum`` adds the parts up, against ``whole``."""
    found = []
    for engine, by_part in samples.items():
        limit = peak[PRECISION.get(engine, "fp32")]
        groups: dict[str, list[Part]] = {}
        for part in parts:
            groups.setdefault(part.belongs_to, []).append(part)
        sum_s = sum(record.median(by_part[part.name]) for part in parts[1:])
        for name, group in groups.items():
            taken = sum(record.median(by_part[part.name]) for part in group)
            gflops = 2 * sum(part.macs for part in group) / taken / 1e9
            row = {"engine": engine, "part": name, "gmac": sum(p.macs for p in group) / 1e9}
            row |= {"ms_per_tile": 1e3 * taken, "share_of_sum": taken / sum_s}
            found.append({**row, "gflops": gflops, "of_peak": gflops / limit})
        whole_s = record.median(by_part[WHOLE])
        found.append({"engine": engine, "part": "sum of parts / whole", "ratio": sum_s / whole_s})
    return found


def text(document: dict[str, Any]) -> str:
    """Peaks and rows as a table."""
    peak = ", ".join(f"{name} {value:.0f}" for name, value in document["peak"].items())
    lines = [["engine", "part", "GMAC", "ms/tile", "time", "GFLOP/s", "of peak"]]
    for row in document["rows"]:
        if "ratio" in row:
            lines.append([row["engine"], row["part"], "", "", f"{row['ratio']:.2f}", "", ""])
            continue
        figures = [f"{row['gmac']:.3f}", f"{row['ms_per_tile']:.2f}", f"{row['share_of_sum']:.1%}"]
        rates = [f"{row['gflops']:.0f}", f"{row['of_peak']:.1%}"]
        lines.append([row["engine"], row["part"], *figures, *rates])
    head = f"{document['model']['name']}, tile {document['model']['tile']}"
    return f"{head}; peak in GFLOP/s (copy: GB/s): {peak}\n{record.table(lines)}"


def write_plot(path: Path, document: dict[str, Any]) -> None:
    """Share of the peak by part and engine; the width of a bar is its share of the time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    engines = list(document["seconds_per_tile"])
    figure, axes = pyplot.subplots(
        len(engines), 1, figsize=(9, 2.2 * len(engines)), sharex=True, squeeze=False
    )
    for axis, engine in zip(axes[:, 0], engines, strict=True):
        left = 0.0
        for row in document["rows"]:
            if row["engine"] != engine or "ratio" in row or row["part"] == WHOLE:
                continue
            axis.bar(left, row["of_peak"], row["share_of_sum"], align="edge", edgecolor="white")
            if row["share_of_sum"] > 0.05:
                axis.text(left, row["of_peak"] + 0.02, f" {row['part']}", fontsize=7)
            left += row["share_of_sum"]
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_ylim(0, 1.25)
        axis.set_ylabel("of peak")
        axis.set_title(f"{engine} ({PRECISION.get(engine, 'fp32')})", fontsize=9)
    axes[-1, 0].set_xlabel("share of the time")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    raise SystemExit(main())
