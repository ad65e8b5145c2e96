"""poan-train: from a folder of NIfTI volumes to a checkpoint."""

import argparse
import contextlib
import functools
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from poan_runtime.commands.guard import INTERRUPTED, guarded
from poan_runtime.commands.say import Voice
from poan_runtime.errors import PoanError
from poan_runtime.files import sha256_of
from poan_runtime.intensity import PERCENTILE
from poan_train import networks
from poan_train.acquire import lr_model
from poan_train.checkpoint import Facts, read_checkpoint, save_checkpoint
from poan_train.config import TrainConfig
from poan_train.convention import OURS, preparation_of
from poan_train.data import Pair, cached_pair, default_cache, load_pairs
from poan_train.degrade import GRID, Degradation
from poan_train.export_trial import export_trial
from poan_train.options import parser
from poan_train.paper.ablations import changes
from poan_train.paper.calibrate import calibrate, ixi_test_sources, report
from poan_train.ranks import Interrupted, data_parallel, shared_out
from poan_train.resume import nothing_trained, with_history
from poan_train.subjects import (
    EVERY,
    Source,
    find_sources,
    quietly,
    set_aside,
    split_by_subject,
)
from poan_train.train import train

LONG = 1000
"""Steps from which on a training is worth trying an export of its network first."""
LITE_TRAINING = {"batch": 16, "patch": 24, "lr": 1e-3, "schedule": "cosine", "warmup": 100}
LITE_TRAINING |= {"clip": 1.0, "ema": 0.999, "steps": 20_000, "attention_from": 0.5}
"""What a small network learns fastest with on a CPU; the rest keeps the paper's settings."""
Check = tuple[Callable[[float], bool], str]
POSITIVE: Check = (lambda x: 0 < x < math.inf, "positive")
NATURAL: Check = (lambda x: x >= 0, "at least 0")
SHARE: Check = (lambda x: 0 <= x <= 1, "between 0 and 1")
RANGES: Mapping[str, Check] = {
    **dict.fromkeys(("batch", "patch", "lr", "log_every", "validate_every"), POSITIVE),
    **dict.fromkeys(("minutes", "cpu_minutes", "clip"), POSITIVE),
    **dict.fromkeys(("steps", "warmup", "seed"), NATURAL),
    "attention_from": SHARE,
    "ema": (lambda x: 0 <= x < 1, "at least 0 and below 1"),
}
"""What each setting may be, NaN never."""


def main(argv: Sequence[str] | None = None) -> int:
    p = parser()
    args = p.parse_args(argv)
    return guarded(p.prog, lambda: command(args))


def command(args: argparse.Namespace) -> int:
    """Do what the arguments ask for: 0, or 130 where Ctrl-C or SIGTERM stopped it."""
    try:
        if args.check_ixi:
            check_ixi(args.check_ixi, args.check_volumes)
        else:
            run(args)
    except Interrupted as interruption:
        Voice("poan-train").error(str(interruption))
        return INTERRUPTED
    except KeyboardInterrupt:
        Voice("poan-train").error("stopped at once; what was written before is whole")
        return INTERRUPTED
    return 0


def check_ixi(folder: Path, volumes: int) -> None:
    """Print which conventions reproduce the paper's bicubic row on up to ``volumes`` volumes."""
    if volumes < 1:
        raise PoanError(f"--check-volumes must be positive, got {volumes}")
    print(report(calibrate(ixi_test_sources(folder, volumes))))


def run(args: argparse.Namespace) -> None:
    """Train as the arguments say, or write fresh weights for ``--steps 0``."""
    if args.scale is None or args.out is None:
        raise PoanError("--scale and --out are needed to train")
    if args.out.suffix != ".pt":
        raise PoanError(f"{args.out}: expected a checkpoint's name, NAME.pt")
    if args.out.exists() and not (args.resume or args.overwrite):
        raise PoanError(f"{args.out} is there already: --resume goes on, --overwrite replaces it")
    if args.resume and not args.out.is_file():
        raise PoanError(f"--resume: {args.out}: no such checkpoint")
    if not 0 <= args.val_share < 1:
        raise PoanError(f"--val-share must be at least 0 and below 1, got {args.val_share}")
    config = train_config(args)
    values = {**changes(args.arch, args.ablation), **fields_of(args.set)}
    model = lr_model(args.lr_model)
    network_config = networks.make_config(args.arch, args.scale, grid=GRID[model.method], **values)
    facts = Facts(
        arch=args.arch,
        network=networks.config_to_json(network_config),
        contrast="MR" if args.contrast in EVERY else args.contrast,
        degradation=model.facts(args.scale),
        intensity={"rule": "percentile-nonzero", "percentile": PERCENTILE},
        training={"data": [], "licence": args.licence, "steps": 0},
    )
    if config.steps == 0 and config.minutes is None and config.cpu_minutes is None:
        write_untrained(facts, config, args.out)
        if not args.quiet:
            Voice("poan-train").say(f"{args.out}: 0 steps; untrained weights")
        return
    if args.data is None:
        raise PoanError("--data is needed to train (only --steps 0 goes without)")
    if model.acquisition and preparation_of(args) != OURS:
        raise PoanError("--zero-filling, --slices and --round-lr go with LR as papers make it")
    with data_parallel() as (rank, world, _), contextlib.ExitStack() as stack:
        refusal: Callable[[], str | None] = lambda: None  # noqa: E731
        if rank == 0 and worth_a_trial(args, config):
            refusal = stack.enter_context(export_trial(facts))
        _train(args, facts, config, model.method, rank, world, refusal)


def _train(
    args: argparse.Namespace,
    facts: Facts,
    config: TrainConfig,
    method: Degradation,
    rank: int,
    world: int,
    refusal: Callable[[], str | None],
) -> None:
    """Read the data, each process its part, and train unless there is a ``refusal``."""
    training, held_out, aside = split(args)
    preparation = preparation_of(args)
    files = [*training, *held_out]
    read = functools.partial(prepare, args=args, method=method)
    digests = dict(zip(files, shared_out(files, read, rank, world), strict=True))
    pairs, validation = (
        list(load_pairs(part, args.scale, method, args.axis, args.cache, preparation))
        for part in (training, held_out)
    )
    if preparation != OURS:
        facts.degradation["preparation"] = asdict(preparation)
    facts.training.update(data=describe(training), hashes=hashes(training, digests))
    facts.training.update(held_out=describe(held_out), set_aside=aside)
    if args.init:
        facts = with_history(facts, read_checkpoint(args.init)[0])
        facts.training["init"] = args.init.name
    for line in remarks(facts, config, pairs, validation):
        Voice("poan-train").warn(line)
    if why := refusal():
        raise PoanError(f"{why}; --no-export-trial trains it all the same")
    before = read_checkpoint(args.out)[0].training.get("steps") if args.resume else None
    trained = train(
        facts,
        config,
        pairs,
        validation,
        args.out,
        resume=args.resume,
        allow_changes=args.allow_changes,
        init=args.init,
        shown=not args.quiet,
    )
    if rank == 0 and trained.training["steps"] == before:
        Voice("poan-train").warn(nothing_trained(config, trained.training))
    if rank == 0 and not args.quiet:
        Voice("poan-train").say(written(args.out, trained))


def written(out: Path, facts: Facts) -> str:
    """What lies in the checkpoint, in one line."""
    said = f"{out}: {facts.training['steps']} steps"
    if facts.metrics:
        said += (
            "; {tile_psnr:.2f} dB on tiles, bicubic {tile_psnr_bicubic:.2f}, "
            "sinc {tile_psnr_sinc:.2f}"
        ).format_map(facts.metrics)
    return said


def worth_a_trial(args: argparse.Namespace, config: TrainConfig) -> bool:
    """Whether the training is long enough for an export to be tried before it."""
    timed = config.minutes is not None or config.cpu_minutes is not None
    return not (args.resume or args.no_export_trial) and (timed or config.steps >= LONG)


def remarks(
    facts: Facts, config: TrainConfig, pairs: Sequence[Pair], validation: Sequence[Pair]
) -> list[str]:
    """What will not be as one may think, one line each, before the first step."""
    network = networks.build(facts.arch, networks.config_from_json(facts.arch, facts.network))
    lines = networks.unexportable(network)
    if not validation:
        lines.append("no volume to validate on: tile_psnr is that of training volumes; say --val")
    side = min((min(pair.lr.shape[1:]) for pair in pairs), default=config.patch)
    if config.patch > side:
        lines.append(f"--patch {config.patch}: the smallest LR slice allows {side}, which is taken")
    return lines


def split(args: argparse.Namespace) -> tuple[list[Source], list[Source], list[str]]:
    """(training files, validation files, subjects set aside), which are printed once, if at all."""
    first = os.environ.get("RANK", "0") == "0"
    say = Voice("poan-train").warn if first else quietly
    sources = find_sources(args.data, args.contrast, args.table, say)
    aside = subjects_of(args.hold_out)
    sources = set_aside(sources, aside)
    if args.val:
        training, held_out = sources, find_sources(args.val, args.contrast, args.table, say)
    else:
        training, held_out = split_by_subject(sources, args.val_share)
    if not training:
        raise PoanError(f"{args.data}: no volume is left to train on")
    same = {s.subject for s in training} & {s.subject for s in held_out}
    if same:
        raise PoanError(f"subjects {sorted(same)} are both in --data and in --val")
    if first and not args.quiet:
        for part, files in (("trains", training), ("validates", held_out)):
            who = sorted({s.subject for s in files})
            count = "1 volume" if len(files) == 1 else f"{len(files)} volumes"
            Voice("poan-train").say(f"{part} on {count}, subjects: {', '.join(who) or 'none'}")
        if aside:
            Voice("poan-train").say(f"set aside: {', '.join(aside)}")
    return training, held_out, aside


def prepare(source: Source, *, args: argparse.Namespace, method: Degradation) -> str:
    """Decode a volume into the cache; the SHA-256 of its file."""
    cache = args.cache or default_cache()
    cached_pair(source, args.scale, method, args.axis, cache, preparation_of(args))
    return sha256_of(source.path)


def hashes(sources: Sequence[Source], digests: Mapping[Source, str]) -> dict[str, str]:
    """SHA-256 of each file, by its name; of a second file of one name by its whole path."""
    found: dict[str, str] = {}
    for source in sources:
        name = source.path.name
        found[name if name not in found else str(source.path)] = digests[source]
    return found


def fields_of(settings: Sequence[str]) -> dict[str, Any]:
    """Fields of a config from NAME=VALUE, where VALUE is JSON or else a word.

    >>> fields_of(["blocks=8", "gate=sigmoid", "pyramid=[0.8, 0.4]", "zero_start=false"])
    {'blocks': 8, 'gate': 'sigmoid', 'pyramid': (0.8, 0.4), 'zero_start': False}
    """
    fields: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not (name and equals and text):
            raise PoanError(f"--set needs NAME=VALUE, got {setting!r}")
        if name in ("scale", "grid"):
            raise PoanError(f"--set {setting}: use --{'scale' if name == 'scale' else 'lr-model'}")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        fields[name] = tuple(value) if isinstance(value, list) else value
    return fields


def subjects_of(words: Sequence[str]) -> list[str]:
    """Subjects by name, sorted; a word that is a file stands for the names on its lines."""
    names: set[str] = set()
    for word in words:
        lines = Path(word).read_text().splitlines() if Path(word).is_file() else [word]
        names |= {name for line in lines if (name := line.partition("#")[0].strip())}
    return sorted(names)


def describe(sources: Sequence[Source]) -> list[str]:
    return [s.path.name for s in sources]


def train_config(args: argparse.Namespace) -> TrainConfig:
    """The preset of the architecture, changed by the options that were given."""
    preset = LITE_TRAINING if networks.ARCHITECTURES[args.arch].small else {}
    fields = asdict(TrainConfig())
    given = {k: v for k, v in vars(args).items() if k in fields and v is not None}
    config = TrainConfig(**{**preset, **given})
    for name, (fits, words) in RANGES.items():
        value = getattr(config, name)
        if value is not None and not fits(value):
            raise PoanError(f"--{name.replace('_', '-')} must be {words}, got {value}")
    return config


def write_untrained(facts: Facts, config: TrainConfig, out: Path) -> None:
    import torch

    torch.manual_seed(config.seed)
    network_config = networks.config_from_json(facts.arch, facts.network)
    save_checkpoint(out, facts, networks.build(facts.arch, network_config).state_dict())


if __name__ == "__main__":
    raise SystemExit(main())
