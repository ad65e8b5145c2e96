"""What each part of the attention is worth, on LR as a scanner makes it.

    python -m benchmarks.attention_pays --data TRAIN --val VAL

trains each variant on the scanner-like mix (T2 x2) under one protocol, evaluates it on clean LR and
on LR with noise, and writes one JSON a run and table.md. A run that is there is not made again;
``--runs 1`` makes one and stops; ``--report`` only writes the table. The variants of `THRICE` take
three seeds, the others one. ``--time`` times those of ``--variants`` per tile, one after the other
in each round, in ONNX Runtime and OpenVINO on one thread.
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from benchmarks import record
from benchmarks.engines import load, seconds_per_tile
from poan_export.rewrite.network import rewrite, rules_for
from poan_export.rewrite.root import Scheme
from poan_export.trace.onnx_export import INPUT_NAME, export_twin, without_stages
from poan_runtime.errors import PoanError
from poan_train import cli, evaluate, networks
from poan_train.checkpoint import load_network
from poan_train.networks.audit import flatness, gate_change

ENGINES = ("onnxruntime-fp32", "openvino-f32")
KINDS = ("bicubic", "truncated", "snr30", "snr15")
ALIVE = {"similarity": "cosine", "z_norm": "trace", "gate_unit": "mean"}
SETTINGS = {"batch": 16, "patch": 24, "lr": 1e-3, "schedule": "cosine", "warmup": 100, "clip": 1}
SETTINGS |= {"ema": 0.99, "attention-from": 0}
TILE, BATCH = 33, 4
"""LR side of the tiles, and how many the audit looks at; they are timed one at a time."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A network's name and what is changed in its config."""

    arch: str
    about: str
    changes: Mapping[str, Any] = field(default_factory=dict)


ALONE = {"point": False, "pyramid": [], "channel": "context"}
VARIANTS: Mapping[str, Variant] = {
    "edsr-lite": Variant(arch="edsr-lite", about="no attention"),
    "dense": Variant(arch="poan-lite-dense", about="stride 1, scores and z with a unit"),
    "strided-alive": Variant(arch="poan-lite", about="stride 3, no points, scores and z without"),
    "edsr-longer": Variant(
        arch="edsr-lite",
        about="no attention, 21 blocks: as long per tile (36 channels take 1.6 to 1.8 times)",
        changes={"blocks": 21},
    ),
    "seran-lite": Variant(arch="seran-lite", about="SERAN (from the abstract)"),
    "dense-alive": Variant(arch="poan-lite-dense", about="stride 1, alive", changes=ALIVE),
    "middle-and-end": Variant(
        arch="poan-lite", about="strided-alive, twice", changes={"more_poab_after": [16]}
    ),
    "end": Variant(arch="poan-lite", about="strided-alive, at the end", changes={"poab_after": 16}),
    "spatial alone": Variant(
        arch="poan-lite", about="strided-alive without NCAB", changes={"channel": "none"}
    ),
    "ncab alone": Variant(arch="poan-lite", about="NCAB without patches", changes={"pyramid": []}),
    "context": Variant(arch="poan-lite", about="a vector of the tile's means alone", changes=ALONE),
}
THRICE = ("edsr-lite", "dense", "strided-alive")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.attention_pays",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--data", type=Path, help="folder of training volumes")
    p.add_argument("--val", type=Path, help="folder of test volumes, of other subjects")
    p.add_argument(
        "--hold-out", nargs="+", default=[], metavar="SUBJECT", help="subjects set aside in --data"
    )
    p.add_argument("--out", type=Path, default=record.RESULTS / "attention_pays")
    p.add_argument("--checkpoints", type=Path, default=Path("attention_pays_checkpoints"))
    p.add_argument("--contrast", default="T2")
    p.add_argument("--steps", type=int, default=1500)
    p.add_argument("--every", type=int, default=4, help="evaluate every N-th slice")
    p.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS))
    p.add_argument("--runs", type=int, help="make at most so many runs now")
    p.add_argument("--core-hours", type=float, default=12.0, help="stop after so many, all runs'")
    p.add_argument("--time", action="store_true", help="time the variants; make no runs")
    p.add_argument("--rounds", type=int, default=15, help="of --time")
    p.add_argument("--report", action="store_true", help="only write the table from the runs")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        if args.time:
            record.write(args.out / "timing.json", timing(args.variants, args.rounds))
        elif not args.report:
            make(args)
        timed = args.out / "timing.json"
        found = json.loads(timed.read_text())["ms_per_tile"] if timed.is_file() else {}
        (args.out / "table.md").write_text(table(read_runs(args.out), found))
    except PoanError as error:
        print(f"attention_pays: {error}", file=sys.stderr)
        return 2
    print((args.out / "table.md").read_text())
    return 0


def planned(variants: Sequence[str]) -> Iterator[tuple[str, int]]:
    """(variant, seed): all seeds of `THRICE`, then the rest, so that a stop leaves whole rows."""
    yield from ((name, seed) for seed in range(3) for name in variants if name in THRICE)
    yield from ((name, 0) for name in variants if name not in THRICE)


def make(args: argparse.Namespace) -> None:
    """Make the runs that are not there, within ``--runs`` and ``--core-hours``."""
    if args.data is None or args.val is None:
        raise PoanError("need --data and --val (only --report goes without)")
    args.out.mkdir(parents=True, exist_ok=True)
    made = 0
    for name, seed in planned(args.variants):
        path = args.out / f"{name.replace(' ', '-')}_seed{seed}.json"
        if path.is_file():
            continue
        spent = sum(run["cpu_seconds"] for run in read_runs(args.out)) / 3600
        if made == args.runs or spent >= args.core_hours:
            print(f"attention_pays: {spent:.2f} core-hours; not made: {name} seed {seed} and later")
            return
        record.write(path, one_run(args, name, seed))
        made += 1


def one_run(args: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """Train, evaluate, time and audit one variant at one seed."""
    variant = VARIANTS[name]
    checkpoint = args.checkpoints / f"{name.replace(' ', '-')}_seed{seed}.pt"
    train = train_command(variant, args, seed, checkpoint)
    must(cli.main(train), "poan-train", train)
    measured = checkpoint.with_suffix(".eval.json")
    judge = ["--ckpt", str(checkpoint), "--data", str(args.val), "--contrast", args.contrast]
    judge += ["--lr-model", *KINDS, "--every", str(args.every), "--json", str(measured)]
    must(evaluate.main(judge), "poan-eval", judge)
    network, facts = load_network(checkpoint)
    found = json.loads(measured.read_text())
    return {
        "variant": name,
        "seed": seed,
        "about": variant.about,
        "commands": [shlex.join(["poan-train", *train]), shlex.join(["poan-eval", *judge])],
        "parameters": sum(p.numel() for p in network.parameters()),
        "steps": facts.training["steps"],
        "cpu_seconds": facts.training["cpu_seconds"],
        "psnr": {row["kind"]: row["sr"]["psnr"] for row in found["means"]},
        "gain": {row["kind"]: row["gain_psnr"] for row in found["means"]},
        "volumes": found["volumes"],
        **alive(network),
        "machine": record.machine(),
    }


def train_command(
    variant: Variant, args: argparse.Namespace, seed: int, checkpoint: Path
) -> list[str]:
    """Arguments of poan-train."""
    command = ["--data", str(args.data), "--val", str(args.val), "--contrast", args.contrast]
    command += ["--scale", "2", "--arch", variant.arch, "--lr-model", "scanner"]
    command += [w for k, v in variant.changes.items() for w in ("--set", f"{k}={json.dumps(v)}")]
    command += [word for k, v in SETTINGS.items() for word in (f"--{k}", str(v))]
    command += ["--hold-out", *args.hold_out] if args.hold_out else []
    command += ["--steps", str(args.steps), "--seed", str(seed)]
    command += ["--resume"] if checkpoint.is_file() else []
    return [*command, "--out", str(checkpoint)]


def must(status: int, program: str, command: Sequence[str]) -> None:
    if status:
        raise PoanError(f"failed: {shlex.join([program, *command])}")


def tiles() -> np.ndarray[Any, np.dtype[np.float32]]:
    """Seeded tiles (BATCH, 1, TILE, TILE) in [0, 1], of no picture."""
    values = np.random.default_rng(0).random((BATCH, 1, TILE, TILE))
    return values.astype(np.float32)


def timing(variants: Sequence[str], rounds: int) -> dict[str, Any]:
    """Milliseconds per tile of the variants in each engine: all samples, and their median."""
    feed = {INPUT_NAME: tiles()[:1]}
    samples: dict[str, dict[str, list[float]]] = {}
    for engine in ENGINES:
        ready = {name: load(engine, graph_of(VARIANTS[name]), 1) for name in variants}
        for _ in range(rounds):
            for name, runs in ready.items():
                seconds = seconds_per_tile(runs, feed, 0.1)
                samples.setdefault(name, {}).setdefault(engine, []).append(1e3 * seconds)
    medians = {
        name: {engine: float(np.median(own)) for engine, own in engines.items()}
        for name, engines in samples.items()
    }
    return {"ms_per_tile": medians, "samples": samples, "machine": record.machine()}


def graph_of(variant: Variant) -> onnx.ModelProto:
    """The exported graph of a variant with fresh weights, without what the gate looks into."""
    changes = {k: tuple(v) if isinstance(v, list) else v for k, v in variant.changes.items()}
    torch.manual_seed(0)
    config = networks.make_config(variant.arch, 2, **changes)
    network = networks.build(variant.arch, config).eval()
    rules = rules_for(Scheme(name="quintic", iterations=7), "box")
    return without_stages(export_twin(rewrite(network, rules), TILE))


def alive(network: torch.nn.Module) -> dict[str, Any]:
    """Entropy / log L of the branches, and what z = 0 changes of the gates, on seeded tiles."""
    x = torch.nn.functional.avg_pool2d(torch.from_numpy(tiles()), 5, 1, 2)
    return {"flatness": flatness(network, x), "gate_change": gate_change(network, x)}


def read_runs(folder: Path) -> list[dict[str, Any]]:
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*_seed*.json"))]
    order = list(VARIANTS)
    return sorted(runs, key=lambda run: (order.index(run["variant"]), run["seed"]))


def table(runs: Sequence[dict[str, Any]], timed: Mapping[str, Mapping[str, float]]) -> str:
    """The mean over seeds of each variant; how far seeds lie apart where there are several."""
    heads = [f"{kind}, dB" for kind in KINDS]
    steps = ", ".join(f"{n:,}" for n in sorted({run["steps"] for run in runs}))
    lines = [
        "# Does attention pay?",
        "",
        f"T2 x2 trained on LR as a scanner makes it, {steps} steps each; mean PSNR within the head "
        "over the validation volumes, ± standard deviation over seeds. ms: per tile of "
        f"{TILE}, ONNX Runtime / OpenVINO in float32, one thread.",
        "",
        f"| variant | seeds | {' | '.join(heads)} | ms | parameters | what |",
        "|---" * (len(heads) + 5) + "|",
    ]
    for name, variant in VARIANTS.items():
        own = [run for run in runs if run["variant"] == name]
        ms = " / ".join(f"{value:.2f}" for value in timed.get(name, {}).values())
        if not own:
            lines.append(f"| {name} | not run |{' |' * len(heads)} {ms} | | {variant.about} |")
            continue
        cells = [spread([run["psnr"][kind] for run in own]) for kind in KINDS]
        parameters = f"{own[0]['parameters']:,}"
        lines.append(
            f"| {name} | {len(own)} | {' | '.join(cells)} | {ms} | {parameters} | {variant.about} |"
        )
    lines += ["", *less_than_none(runs)]
    commands = [f"    {command}" for run in runs for command in run["commands"]]
    hours = sum(run["cpu_seconds"] for run in runs) / 3600
    return "\n".join([*lines, "", f"{hours:.2f} core-hours of training.", "", *commands, ""])


def less_than_none(runs: Sequence[dict[str, Any]]) -> list[str]:
    """What each variant has over edsr-lite seed by seed; of several seeds what a step takes."""
    plain = {run["seed"]: run for run in runs if run["variant"] == "edsr-lite"}
    lines = []
    for name in VARIANTS:
        own = [r for r in runs if r["variant"] == name and r["seed"] in plain]
        if name == "edsr-lite" or not own:
            continue
        over = {k: [r["psnr"][k] - plain[r["seed"]]["psnr"][k] for r in own] for k in KINDS}
        said = ", ".join(f"{k} {np.mean(v):+.3f}" for k, v in over.items())
        line = f"- {name} less edsr-lite, same seeds ({len(own)}): {said} dB"
        times = [r["cpu_seconds"] / plain[r["seed"]]["cpu_seconds"] for r in own]
        if len(own) > 1:  # one run's time says what ran beside it
            line += f"; a training step takes {np.median(times):.2f} of edsr-lite's processor time"
        lines.append(f"{line}.")
    return lines


def spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
