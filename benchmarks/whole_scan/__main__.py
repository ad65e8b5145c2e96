"""Whole scan, NIfTI to NIfTI: poan-run against what a user would pick instead.

    python -m benchmarks.whole_scan --ckpt poan_t2_x2.pt --model poan_t2_x2 --scan T2.nii.gz
    python -m benchmarks.whole_scan ... --slices 16 --repetitions 3 --budget 480

Every sample is a process of its own, timed from its start to its end. Contenders take turns; each
repetition starts with the next one. What was measured is kept in the JSON after every sample, and
a later call goes on where an earlier one stopped (``--budget`` seconds), as long as checkpoint,
model, scan and slices are the same.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import record
from benchmarks.unit_scan import SHAPE, hr_volume, spread, write_pair
from benchmarks.whole_scan.contenders import (
    COMPETITORS,
    POAN,
    Contender,
    Setting,
    foresee,
    parse,
    run,
)
from benchmarks.whole_scan.outcome import summarise, text, write_plot
from poan_runtime.errors import PoanError
from poan_runtime.models.manifest import read_manifest
from poan_runtime.tiles.layout import lay_out_axis, least_overlap_of
from poan_train.data import default_cache

POAN_DEFAULT = ("=", "fp32=--precision fp32")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.whole_scan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--ckpt", type=Path, required=True, help="for the competitors")
    p.add_argument("--model", type=Path, required=True, help="poan-export's folder of it")
    p.add_argument("--scan", type=Path, help="real HR volume (default: a phantom)")
    p.add_argument("--slices", type=int, help="that many, spread through the scan (default: all)")
    p.add_argument("--size", type=int, default=SHAPE[1], help="HR voxels along a slice's side")
    p.add_argument("--repetitions", type=int, default=1, help="samples wanted of each")
    p.add_argument("--budget", type=float, default=480.0, help="begin no sample after, seconds")
    p.add_argument("--against", default=",".join(COMPETITORS), help="competitors, with commas")
    p.add_argument(
        "--poan",
        action="append",
        metavar="NAME[@MODEL]=ARGUMENTS",
        help="a way to run poan-run, repeatable (default: as it is, and in fp32)",
    )
    p.add_argument("--batch", type=int, default=1, help="tiles per call of the competitors")
    p.add_argument("--tile", type=int, help="tile of the competitors (default: the model's)")
    p.add_argument("--fresh", action="store_true", help="discard the samples taken before")
    p.add_argument("--out", type=Path, help="JSON (default: results/whole_scan/MODEL.json)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        contenders = parse(args.against, args.poan or POAN_DEFAULT)
        path = args.out or default_out(args)
        setting, facts = prepare(args)
        document = earlier(None if args.fresh else record.read(path), facts)
        sample_all(document, contenders, setting, args, path)
        document["summary"] = summarise(document, setting, contenders)
        record.write(path, document)
        write_plot(path.with_suffix(".png"), document)
        print(text(document))
    except PoanError as error:
        print(f"whole_scan: {error}", file=sys.stderr)
        return 2
    return 0


def earlier(document: dict[str, Any] | None, facts: dict[str, Any]) -> dict[str, Any]:
    """The document to go on with; samples of poan-run with another model are dropped."""
    fixed = {key: value for key, value in facts.items() if key != "model"}
    if document is None or any(document["facts"].get(key) != fixed[key] for key in fixed):
        return {"facts": facts, "machine": record.machine(), "predicted": {}, "samples": []}
    if document["facts"]["model"] != facts["model"]:
        document["predicted"] = {}
        kept = [s for s in document["samples"] if not s["contender"].startswith(POAN)]
        document["samples"] = kept
    return {**document, "facts": facts}


def default_out(args: argparse.Namespace) -> Path:
    name = args.model.name + (f"_{args.slices}_slices" if args.slices else "")
    return record.RESULTS / "whole_scan" / f"{name}.json"


def prepare(args: argparse.Namespace) -> tuple[Setting, dict[str, Any]]:
    """The scan, the plain ONNX and what describes them; made once and kept in the cache."""
    from benchmarks.plain import export_plain
    from poan_train.checkpoint import load_network

    network, checkpoint = load_network(args.ckpt)
    manifest = read_manifest(args.model)
    tile = args.tile or manifest.tile
    method = checkpoint.degradation.get("method", "bicubic")
    hr = spread(hr_volume(args.scan, (SHAPE[0], args.size, args.size)), args.slices)
    digest = record.hashes([args.ckpt])[args.ckpt.name]
    scan_name = "phantom" if args.scan is None else args.scan.name
    key = f"{args.ckpt.stem}-{digest[:12]}-{scan_name}-{args.size}-{len(hr)}-{tile}"
    work = default_cache() / "whole_scan" / key
    lr = write_pair(work, hr, manifest.scale, method)
    onnx = work.with_name(f"plain-{digest[:12]}-{tile}.onnx")
    if not onnx.is_file():
        export_plain(network, tile, onnx)
    side = args.size // manifest.scale
    least = least_overlap_of(manifest.overlap)
    axis = lay_out_axis(side, tile, manifest.halo, manifest.overlap, manifest.scale, least)
    setting = Setting(
        model=args.model,
        ckpt=args.ckpt,
        onnx=onnx,
        lr=lr,
        work=work,
        scale=manifest.scale,
        tile=tile,
        overlap=2 * manifest.halo + axis.overlap,
        batch=args.batch,
    )
    facts = {
        "checkpoint": {"name": args.ckpt.name, "sha256": digest},
        "arch": checkpoint.arch,
        "trained_steps": checkpoint.training.get("steps"),
        "model": {"name": args.model.name, **record.hashes(sorted(args.model.glob("*.onnx")))},
        "scan": scan_name,
        "degradation": method,
        "hr_shape": list(hr.shape),
        "lr_shape": [len(hr), side, side],
        "whole_scan_slices": SHAPE[0],
        "scale": manifest.scale,
        "competitors_tile": tile,
        "competitors_tiles_per_slice": len(axis.starts) ** 2,
        "competitors_batch": args.batch,
        "competitors_overlap": setting.overlap,
    }
    return setting, facts


def sample_all(
    document: dict[str, Any],
    contenders: Sequence[Contender],
    setting: Setting,
    args: argparse.Namespace,
    path: Path,
) -> None:
    """Samples in turn until each contender has as many as wanted or the budget is spent."""
    begun = time.perf_counter()
    for repetition in range(args.repetitions):
        first = repetition % len(contenders)
        for contender in (*contenders[first:], *contenders[:first]):
            have = [s for s in document["samples"] if s["contender"] == contender.name]
            if len(have) > repetition:
                continue
            longest = max((s["wall_s"] for s in have), default=0.0)
            if time.perf_counter() - begun + longest > args.budget:
                return
            if contender.is_poan and contender.name not in document["predicted"]:
                document["predicted"][contender.name] = foresee(contender, setting)
            sample = {"contender": contender.name, "load_before": os.getloadavg()[0]}
            sample["commit"] = record.commit()
            sample |= run(contender, setting)
            document["samples"].append(sample)
            record.write(path, document)
            print(f"{contender.name}: {sample['wall_s']:.1f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    np.seterr(all="raise", under="ignore")
    raise SystemExit(main())
