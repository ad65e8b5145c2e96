"""What `poan-bids` does, once it is clear what was asked for."""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence

from poan_runtime.batch import cohort_report, slurm
from poan_runtime.batch.bids import CONTRASTS, BidsScan, find_scans, read_filters
from poan_runtime.batch.derivative import begin_derivative, is_done
from poan_runtime.batch.one_scan import Cohort, Networks, Result, plan
from poan_runtime.batch.workers import Workers, in_this_process
from poan_runtime.commands.say import Voice, level_of
from poan_runtime.commands.server_options import access_of
from poan_runtime.engines.backend import EngineOptions
from poan_runtime.engines.cores import usable_cores
from poan_runtime.errors import PoanError
from poan_runtime.models.find import auto_model
from poan_runtime.network import Settings

COMMAND = "poan-bids"


def participant(args: argparse.Namespace) -> int:
    """Make what is not made yet; 1 if some scans failed."""
    scans = _scans(args)
    cohort = _cohort(args)
    if args.dry_run:
        return _dry_run(cohort, scans, _voice(args))
    begin_derivative(args.bids_dir, args.output_dir)
    results: list[Result] = []
    voice = _voice(args)
    for result in _results(args, cohort, scans):
        results.append(result)
        voice.say(f"{len(results)}/{len(scans)} {_line(result)}")
    return _summary(results, voice)


def group(args: argparse.Namespace) -> int:
    """Write the cohort's report from what the participants' runs recorded."""
    path, failed = cohort_report.write(args.output_dir)
    _voice(args).say(f"{path}: {failed} scans failed" if failed else str(path))
    return 0


def submit(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Submit an array job that does the same; what it will do is checked first."""
    scans = _scans(args)
    cohort = _cohort(args)
    networks = Networks(cohort.options)
    for suffix in sorted({scan.suffix for scan in scans}):
        networks.model(cohort.models[suffix])
    begin_derivative(args.bids_dir, args.output_dir)
    request = slurm.Request(
        out=args.output_dir,
        arguments=tuple(slurm.without_slurm(argv)),
        tasks=min(args.tasks, len(scans)),
        retries=args.retries,
        partition=args.partition,
        time=args.time,
        memory=args.mem,
        cores=args.threads or 1,
        extra=tuple(args.sbatch),
    )
    array, last = slurm.submit(request)
    _voice(args).say(
        f"{len(scans)} scans: array job {array} of {request.tasks} tasks, then job {last}"
    )
    return 0


def _voice(args: argparse.Namespace) -> Voice:
    return Voice(COMMAND, level_of(quiet=args.quiet, verbose=False))


def _scans(args: argparse.Namespace) -> list[BidsScan]:
    filters = None if args.bids_filter_file is None else read_filters(args.bids_filter_file)
    scans = find_scans(
        args.bids_dir,
        subjects=args.participant_label,
        sessions=args.session_label,
        filters=filters,
    )
    if not scans:
        names = ", ".join(CONTRASTS)
        raise PoanError(f"{args.bids_dir}: no scan of {names} that was asked for")
    if args.share is None:
        return scans
    part, whole = args.share
    return scans[part - 1 :: whole]


def _cohort(args: argparse.Namespace) -> Cohort:
    threads = args.threads
    if threads is None and args.n_procs > 1:
        threads = max(1, usable_cores() // args.n_procs)
    return Cohort(
        dataset=args.bids_dir,
        out=args.output_dir,
        models=_models(args.model, args.scale),
        settings=Settings(axis=args.axis, self_ensemble=args.self_ensemble, threads=threads),
        options=EngineOptions(
            backend=args.backend,
            device=args.device,
            threads=threads,
            precision=args.precision,
            access=access_of(args),
        ),
    )


def _models(named: Sequence[str], scale: int) -> dict[str, str]:
    """A model for each suffix: the shipped one of its contrast, unless another is named."""
    models = {
        suffix: auto_model(f"auto_x{scale}", contrast) for suffix, contrast in CONTRASTS.items()
    }
    for text in named:
        suffix, _, model = text.rpartition("=")
        if suffix and suffix not in models:
            raise PoanError(f"--model: expected one of {', '.join(models)}, got {suffix}")
        models |= dict.fromkeys([suffix] if suffix else models, model)
    return models


def _results(args: argparse.Namespace, cohort: Cohort, scans: list[BidsScan]) -> Iterator[Result]:
    if args.n_procs == 1:
        return in_this_process(cohort, scans)
    return Workers(cohort, min(args.n_procs, len(scans)), args.mem).results(scans)


def _dry_run(cohort: Cohort, scans: list[BidsScan], voice: Voice) -> int:
    """List what each scan would become."""
    networks = Networks(cohort.options)
    for scan in scans:
        try:
            made, image = plan(cohort, scan, networks)
        except PoanError as error:
            voice.say(f"{scan.stem}: would fail: {error}")
            continue
        state = "done" if is_done(image, made) else f"to do with {made.model}"
        voice.say(f"{scan.stem}: {state}: {image.relative_to(cohort.out)}")
    return 0


def _line(result: Result) -> str:
    if result.state == "failed":
        return f"{result.stem}: failed"
    took = f" in {result.seconds:.1f} s" if result.state == "done" else " (done before)"
    return f"{result.stem}: {result.state}{took}"


def _summary(results: list[Result], voice: Voice) -> int:
    counts = Counter(result.state for result in results)
    voice.say(", ".join(f"{counts[state]} {state}" for state in ("done", "skipped", "failed")))
    for result in results:
        if result.state == "done" and result.message:
            voice.warn(f"{result.stem}: {result.message}")
    failed = [result for result in results if result.state == "failed"]
    for result in failed:
        voice.error(f"{result.stem}: {result.message}")
    return 1 if failed else 0
