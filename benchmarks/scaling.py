"""How time and memory grow: with the volume, the tile, the batch and the threads.

    python -m benchmarks.scaling --ckpt t2_x2.pt --model t2_x2
    python -m benchmarks.scaling --ckpt t2_x2.pt --model t2_x2 --only volumes

``volumes`` runs `poan-run` as a process on 1x to 16x the slices; ``tiles`` exports the checkpoint
at several tiles and times its parts; ``batches`` and ``threads`` time the backend that poan-run
takes. What is not asked for keeps its earlier result in the JSON.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import record
from benchmarks.engines import CPU_ENGINES, load, seconds_per_tile
from benchmarks.unit_scan import hr_volume, write_pair
from benchmarks.whole_scan.contenders import Contender, Setting, run
from poan_export.rewrite.attention import FORMS
from poan_runtime.errors import PoanError
from poan_runtime.models.find import find_model
from poan_runtime.models.manifest import read_manifest

QUESTIONS = ("volumes", "tiles", "batches", "threads")
BASE_SLICES = 12


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--ckpt", type=Path, required=True)
    p.add_argument("--model", required=True, help="poan-export's folder of it, or a shipped name")
    p.add_argument("--only", choices=QUESTIONS, action="append", help="repeatable (default: all)")
    p.add_argument("--base", type=int, default=BASE_SLICES, help="slices of the smallest volume")
    p.add_argument("--times", type=numbers, default=[1, 2, 4, 8, 16], help="sizes of the volume")
    p.add_argument("--tiles", type=numbers, default=[16, 24, 32, 48, 64])
    p.add_argument("--batches", type=numbers, default=[1, 2, 4, 8, 16, 32])
    p.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--engine", choices=CPU_ENGINES, default="openvino-f32", help="for the tiles")
    p.add_argument("--attention", choices=FORMS, default="box", help="its form, for the tiles")
    p.add_argument("--size", type=int, default=240, help="HR voxels along a slice's side")
    p.add_argument("--repetitions", type=int, default=1)
    p.add_argument("--seconds", type=float, default=1.0, help="least per figure of the others")
    p.add_argument("--out", type=Path, help="JSON (default: results/scaling/MODEL.json)")
    return p


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        model = find_model(args.model)
        path = args.out or record.RESULTS / "scaling" / f"{model.manifest.name}.json"
        document = record.read(path) or {}
        document["model"] = {"name": model.manifest.name, "sha256": model.file.sha256}
        answers = {"volumes": volumes, "tiles": tiles, "batches": batches, "threads": threads}
        for question in args.only or QUESTIONS:
            document[question] = answers[question](args)
            document[question]["machine"] = record.machine()
            record.write(path, document)
        write_plot(path.with_suffix(".png"), document)
        print(text(document))
    except PoanError as error:
        print(f"scaling: {error}", file=sys.stderr)
        return 2
    return 0


def volumes(args: argparse.Namespace) -> dict[str, Any]:
    """Wall seconds and peak memory of poan-run, NIfTI to NIfTI, against the number of slices."""
    folder = find_model(args.model).path.parent
    manifest = read_manifest(folder)
    samples: dict[int, list[dict[str, Any]]] = {times: [] for times in args.times}
    with tempfile.TemporaryDirectory() as scratch:
        for times in args.times:
            hr = hr_volume(None, (args.base * times, args.size, args.size))
            write_pair(Path(scratch) / str(times), hr, manifest.scale, "bicubic")
        for repetition in range(args.repetitions):
            for times in args.times if repetition % 2 == 0 else args.times[::-1]:
                work = Path(scratch) / str(times)
                lr, absent = work / "lr.nii.gz", work / "none"
                sizes = {"scale": manifest.scale, "tile": manifest.tile, "overlap": 0, "batch": 1}
                setting = Setting(model=folder, ckpt=absent, onnx=absent, lr=lr, work=work, **sizes)
                # constant tiles run like all others: how many there are is the phantom's affair
                sample = run(Contender(name="poan-run", arguments=("--no-skip",)), setting)
                samples[times].append(sample)
    rows = [
        {
            "times": times,
            "slices": args.base * times,
            "wall_s": record.median([s["wall_s"] for s in samples[times]]),
            "peak_mib": max(s["peak_bytes"] for s in samples[times]) / 2**20,
        }
        for times in args.times
    ]
    return {"samples": {str(k): v for k, v in samples.items()}, "rows": rows, **fit(rows)}


def fit(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The line time = start + slope x slices, how far off it is, and how memory grows.

    >>> fit([{"slices": n, "wall_s": 1 + 2 * n, "peak_mib": 100} for n in (1, 2, 4)])["start_s"]
    1.0
    """
    slices = np.array([row["slices"] for row in rows], float)
    seconds = np.array([row["wall_s"] for row in rows])
    # relative errors count alike, so that the longest run does not decide alone
    design = np.stack([np.ones_like(slices), slices], 1) / seconds[:, None]
    (start, slope), *_ = np.linalg.lstsq(design, np.ones_like(seconds), rcond=None)
    off = np.abs((start + slope * slices) / seconds - 1).max()
    memory = rows[-1]["peak_mib"] / rows[0]["peak_mib"]
    return {
        "start_s": round(float(start), 6),
        "s_per_slice": round(float(slope), 6),
        "largest_deviation_from_line": float(off),
        "memory_of_largest_over_smallest": float(memory),
    }


def tiles(args: argparse.Namespace) -> dict[str, Any]:
    """Microseconds per LR voxel of each part against the tile, every core on a tile of its own."""
    from benchmarks.parts import cut, features_at, read_for_one_tile
    from poan_export.rewrite.network import rewrite, rules_for
    from poan_export.rewrite.root import Scheme
    from poan_export.trace.onnx_export import export_twin, without_stages
    from poan_train.checkpoint import load_network

    network, _ = load_network(args.ckpt)
    exported = rewrite(network, rules_for(Scheme(name="quintic", iterations=7), args.attention))
    rows = []
    for tile in args.tiles:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "model.onnx"
            path.write_bytes(without_stages(export_twin(exported, tile)).SerializeToString())
            graph = read_for_one_tile(path, tile)
        lr = np.random.default_rng(0).random((1, 1, tile, tile), np.float32)
        parts = cut(graph)
        name = graph.graph.input[0].name
        inner = sorted({i for part in parts for i in part.inputs} - {name})
        values = {name: lr, **features_at(graph, inner, lr)}
        for part in parts:
            runs = load(args.engine, part.graph, args.cores)
            feed = {i: values[i] for i in part.inputs}
            taken = seconds_per_tile(runs, feed, args.seconds)
            row = {"tile": tile, "part": part.belongs_to, "piece": part.name}
            row |= {"us_per_voxel": 1e6 * taken / tile**2}
            rows.append({**row, "gflops": 2 * part.macs / taken / 1e9})
    return {"engine": args.engine, "cores": args.cores, "rows": rows}


def batches(args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds per tile of poan-run's backend against the batch."""
    return {"rows": [backend_row(args, batch, None) for batch in args.batches]}


def threads(args: argparse.Namespace) -> dict[str, Any]:
    """The same against the threads, at the batch for which the model is made."""
    opt = find_model(args.model).manifest.batch.opt
    counts = range(1, args.cores + 1)
    return {"rows": [backend_row(args, opt, count) for count in counts]}


def backend_row(args: argparse.Namespace, batch: int, count: int | None) -> dict[str, Any]:
    from poan_runtime.engines.backend import EngineOptions
    from poan_runtime.network import load_network

    network = load_network(args.model, EngineOptions(threads=count))
    tile = network.model.manifest.tile
    tiles = np.random.default_rng(0).random((batch, 1, tile, tile), np.float32)
    backend = network.opened.backend
    backend.run(tiles)
    samples: list[float] = []
    while not samples or sum(samples) < args.seconds:
        start = time.perf_counter()
        backend.run(tiles)
        samples.append(time.perf_counter() - start)
    ms = 1e3 * record.median(samples) / batch
    row = {"batch": batch, "threads": count, "ms_per_tile": ms, "samples_s": samples}
    return {**row, "backend": network.opened.name}


def text(document: dict[str, Any]) -> str:
    """Each question's rows as a table."""
    said = []
    if found := document.get("volumes"):
        lines = [["slices", "s", "s/slice", "peak MiB"]]
        for row in found["rows"]:
            per_slice = row["wall_s"] / row["slices"]
            cells = [f"{row['wall_s']:.2f}", f"{per_slice:.4f}", f"{row['peak_mib']:.0f}"]
            lines.append([str(row["slices"]), *cells])
        said.append(record.table(lines))
        said.append(
            f"{found['start_s']:.2f} s + {found['s_per_slice']:.4f} s per slice, at most "
            f"{found['largest_deviation_from_line']:.1%} off; memory x "
            f"{found['memory_of_largest_over_smallest']:.2f}"
        )
    if found := document.get("tiles"):
        lines = [["tile", "part", "us/voxel", "GFLOP/s"]]
        for row in found["rows"]:
            cells = [f"{row['us_per_voxel']:.3f}", f"{row['gflops']:.0f}"]
            lines.append([str(row["tile"]), row["piece"], *cells])
        said.append(record.table(lines))
    for question in ("batches", "threads"):
        if found := document.get(question):
            key = {"batches": "batch", "threads": "threads"}[question]
            lines = [[key, "ms/tile"]]
            lines += [[str(row[key]), f"{row['ms_per_tile']:.2f}"] for row in found["rows"]]
            said.append(record.table(lines))
    return "\n\n".join(said)


def write_plot(path: Path, document: dict[str, Any]) -> None:
    """Four pictures: volumes (time, memory), tiles by part, batches."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7))
    if found := document.get("volumes"):
        slices = [row["slices"] for row in found["rows"]]
        axes[0, 0].loglog(slices, [row["wall_s"] for row in found["rows"]], "o-")
        axes[0, 0].set(xlabel="slices", ylabel="s, NIfTI to NIfTI")
        axes[0, 1].semilogx(slices, [row["peak_mib"] for row in found["rows"]], "o-")
        axes[0, 1].set(xlabel="slices", ylabel="peak MiB", ylim=(0, None))
    if found := document.get("tiles"):
        for piece in dict.fromkeys(row["piece"] for row in found["rows"]):
            own = [row for row in found["rows"] if row["piece"] == piece]
            places = [row["tile"] for row in own]
            axes[1, 0].loglog(places, [row["us_per_voxel"] for row in own], "o-", label=piece)
        axes[1, 0].set(xlabel="tile", ylabel="us per LR voxel")
        axes[1, 0].legend(fontsize=7)
    if found := document.get("batches"):
        own = found["rows"]
        axes[1, 1].semilogx([r["batch"] for r in own], [r["ms_per_tile"] for r in own], "o-")
        axes[1, 1].set(xlabel="batch", ylabel="ms per tile", ylim=(0, None))
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    raise SystemExit(main())
