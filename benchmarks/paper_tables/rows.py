"""The rows: which there are, and how one is trained, evaluated and kept."""

import hashlib
import json
import platform
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from poan_runtime import extras
from poan_runtime.errors import PoanError
from poan_train import cli, evaluate
from poan_train.acquire import KINDS
from poan_train.checkpoint import load_network, read_checkpoint
from poan_train.convention import OURS, Preparation, preparation_options
from poan_train.data import cached_pair, default_cache
from poan_train.subjects import find_sources

CLASSICAL = ("bicubic", "nlm")
TABLE2, TABLE3 = "ABCDEFGH", "ABCD"
SETTINGS = {"batch": 16, "patch": 24, "schedule": "cosine", "warmup": 100, "clip": 1, "ema": 0.999}
SETTINGS |= {"attention-from": 0}
"""The same for every network, whatever its default; ``--`` on the command line changes them."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of one table at one seed."""

    table: int
    label: str
    """Network in Table 1 (a ``+`` at its end: self-ensemble), letter in Tables 2 and 3."""
    arch: str
    ablation: str | None
    contrast: str
    scale: int
    seed: int
    scanner: bool = False
    """Trained on LR as a scanner makes it, measured on the fixed kinds of LR."""

    @property
    def name(self) -> str:
        table = f"table{self.table}{'_scanner' if self.scanner else ''}"
        return f"{table}_{self.contrast}_x{self.scale}_{self.label}_seed{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What all rows share."""

    train: Path
    val: Path
    out: Path
    budget: tuple[str, ...]
    """``--steps N``, ``--minutes M`` or ``--cpu-minutes M``."""
    rates: tuple[float, ...] = (1e-3,)
    """Learning rates that every network tries; the best on subjects held out of ``train`` stays."""
    degradation: str = "bicubic"
    tile: int = 48
    every: int = 1
    """Evaluate every N-th slice."""
    extra: tuple[str, ...] = ()
    """More options of poan-train."""
    tries: tuple[str, ...] = ()
    """Sets of options that every network tries at its best rate, each one string; after a name and
    a colon those of that network alone."""
    search: tuple[str, ...] = ()
    """Budget of a trial, where it is not ``budget``; the winner is then trained under that."""
    own: tuple[str, ...] = ()
    """``NAME: OPTIONS``: options of poan-train that a network has to itself, untried."""
    preparation: Preparation = OURS
    """Of training and test volumes, but for rows on a scanner's LR."""


def plan(
    tables: Sequence[int],
    archs: Sequence[str],
    contrasts: Sequence[str],
    scales: Sequence[int],
    seeds: Sequence[int],
    ablated: str,
    table2: tuple[str, int],
    table3: tuple[str, int],
    scanner: bool = False,
) -> list[Row]:
    """All rows, the first seed of every table first; a method without weights has one seed.

    With ``scanner`` each trained row of Table 1 again on LR as a scanner makes it.
    """
    rows = []
    for seed in seeds:
        if scanner:
            rows += [
                replace(row, scanner=True)
                for row in plan([1], archs, contrasts, scales, [seed], ablated, table2, table3)
                if row.arch not in CLASSICAL
            ]
        if 1 in tables:
            rows += [
                Row(table=1, label=a, arch=a, ablation=None, contrast=c, scale=s, seed=seed)
                for c in contrasts
                for s in scales
                for a in archs
                if a not in CLASSICAL or seed == seeds[0]
            ]
        for table, letters, (c, s) in ((2, TABLE2, table2), (3, TABLE3, table3)):
            if table in tables:
                rows += [
                    Row(
                        table=table,
                        label=x,
                        arch=ablated,
                        ablation=f"table{table}-{x}",
                        contrast=c,
                        scale=s,
                        seed=seed,
                    )
                    for x in letters
                ]
    return rows


def train_command(
    row: Row, protocol: Protocol, rate: float, tried: str = "", budget: Sequence[str] = ()
) -> list[str]:
    """Arguments of poan-train; the checkpoint is named after them, so others never pass for it."""
    command = ["--data", str(protocol.train), "--contrast", row.contrast]
    command += ["--scale", str(row.scale), "--arch", row.arch.removesuffix("+")]
    command += ["--ablation", row.ablation] if row.ablation else []
    command += ["--degradation", "scanner" if row.scanner else protocol.degradation]
    command += [] if row.scanner else preparation_options(protocol.preparation)
    command += ["--seed", str(row.seed), "--lr", f"{rate:g}"]
    command += [word for k, v in SETTINGS.items() for word in (f"--{k}", str(v))]
    command += [word for own in options_for(row, protocol.own) for word in shlex.split(own)]
    command += [*(budget or protocol.budget), *protocol.extra, *shlex.split(tried)]
    digest = hashlib.sha256(json.dumps(command).encode()).hexdigest()[:10]
    name = f"{row.contrast}_x{row.scale}_{row.arch.removesuffix('+')}_{digest}.pt"
    out = protocol.out / "checkpoints" / name
    more = ["--resume"] if out.is_file() else ["--no-export-trial"]
    return [*command, *more, "--out", str(out)]


def eval_command(row: Row, protocol: Protocol, checkpoint: Path, out: Path) -> list[str]:
    """Arguments of poan-eval."""
    command = ["--ckpt", str(checkpoint), "--data", str(protocol.val), "--contrast", row.contrast]
    command += ["--tile", str(protocol.tile), "--every", str(protocol.every)]
    if row.scanner:
        command += ["--lr-model", *KINDS]
    else:
        command += preparation_options(protocol.preparation)
    return [*command, *(["--self-ensemble"] if row.arch.endswith("+") else []), "--json", str(out)]


def run_row(row: Row, protocol: Protocol) -> bool:
    """Make the row's file unless it is there; True if it was made.

    Raises PoanError when the file is of another protocol, or when a command fails.
    """
    path = protocol.out / "rows" / f"{row.name}.json"
    promise = {"row": asdict(row), "protocol": _plain(protocol)}
    if path.is_file():
        kept = json.loads(path.read_text())
        kept["row"] = {"scanner": False} | kept["row"]  # older rows had none of these
        none = {"tries": [], "search": [], "own": [], "preparation": asdict(OURS)}
        kept["protocol"] = none | kept["protocol"]
        if {k: kept[k] for k in promise} != json.loads(json.dumps(promise)):
            raise PoanError(f"{path}: made under another protocol; choose another --out")
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    result = _classical(row, protocol) if row.arch in CLASSICAL else _trained(row, protocol)
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    content = {**promise, **result, "versions": {**versions, "numpy": np.__version__}}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)
    return True


def _plain(protocol: Protocol) -> dict[str, Any]:
    return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(protocol).items()}


def _trained(row: Row, protocol: Protocol) -> dict[str, Any]:
    trials = [_trial(row, protocol, rate) for rate in protocol.rates]
    rate = _best(trials)["lr"]
    tries = options_for(row, protocol.tries)
    trials += [_trial(row, protocol, rate, tried) for tried in tries]
    best = _best(trials)
    if protocol.search:
        best = _train(row, protocol, best["lr"], best["options"], protocol.budget)
    measured = protocol.out / "rows" / f"{row.name}.eval.json"
    command = eval_command(row, protocol, Path(best["checkpoint"]), measured)
    _must(evaluate.main(command), "poan-eval", command)
    volumes = json.loads(measured.read_text())["volumes"]
    measured.unlink()
    network, _ = load_network(Path(best["checkpoint"]))
    return {
        "commands": [best["command"], shlex.join(["poan-eval", *command])],
        "parameters": sum(p.numel() for p in network.parameters()),
        "trained": best,
        "trials": trials,
        "volumes": volumes,
    }


def options_for(row: Row, sets: Sequence[str]) -> list[str]:
    """Those of ``sets`` ("OPTIONS" or "NAME: OPTIONS") that are for this row's network."""
    named = [options.rpartition(":") for options in sets]
    return [options.strip() for name, _, options in named if name in ("", row.arch.rstrip("+"))]


def _trial(row: Row, protocol: Protocol, rate: float, tried: str = "") -> dict[str, Any]:
    return _train(row, protocol, rate, tried, protocol.search or protocol.budget)


def _best(trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return max(trials, key=lambda t: t["held_out_psnr"])


def _train(
    row: Row, protocol: Protocol, rate: float, tried: str, budget: Sequence[str]
) -> dict[str, Any]:
    """Train once; what a row keeps of it."""
    command = train_command(row, protocol, rate, tried, budget)
    _must(cli.main(command), "poan-train", command)
    checkpoint = Path(command[-1])
    facts, _, _ = read_checkpoint(checkpoint)
    return {
        "command": shlex.join(["poan-train", *command]),
        "checkpoint": str(checkpoint),
        "lr": rate,
        "options": tried,
        "held_out_psnr": facts.metrics["tile_psnr"],
        "steps": facts.training["steps"],
        "seconds": facts.training["seconds"],
        "cpu_seconds": facts.training["cpu_seconds"],
        "data": facts.training["data"],
        "held_out": facts.training["held_out"],
    }


def _classical(row: Row, protocol: Protocol) -> dict[str, Any]:
    with extras.needs("skimage", "classical"):
        from poan_train.classical import CLASSICAL as METHODS
    from poan_train.degrade import GRID

    method: Any = protocol.degradation
    volumes = []
    for source in find_sources(protocol.val, row.contrast):
        cache, preparation = default_cache(), protocol.preparation
        pair = cached_pair(source, row.scale, method, None, cache, preparation)
        lr, hr = (np.asarray(a[:: protocol.every]) for a in (pair.lr, pair.hr))
        if len(hr):
            sr = METHODS[row.arch](lr, row.scale, method)
            up = evaluate.bicubic(lr, row.scale, GRID[method])
            scores = {"bicubic": evaluate.measure(hr, up), "sr": evaluate.measure(hr, sr)}
            volumes.append({"volume": source.path.name, "slices": len(lr), **scores})
    if not volumes:
        raise PoanError(f"{protocol.val}: no volume with anything but background")
    again = ["python", "-m", "benchmarks.paper_tables", "--data", str(protocol.train)]
    again += ["--val", str(protocol.val), "--out", str(protocol.out), "--tables", "1"]
    again += ["--arch", row.arch, "--contrast", row.contrast, "--scale", str(row.scale)]
    again += ["--degradation", protocol.degradation, "--every", str(protocol.every)]
    again += preparation_options(protocol.preparation)
    command = shlex.join([*again, *protocol.budget])
    return {"commands": [command], "parameters": 0, "trained": None, "volumes": volumes}


def _must(code: int, name: str, command: Sequence[str]) -> None:
    if code:
        raise PoanError(f"this failed, see above: {shlex.join([name, *command])}")
