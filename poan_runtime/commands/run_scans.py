"""What `poan-run` does with scans, once its arguments are parsed."""

import argparse
import contextlib
import functools
import os
import time
from pathlib import Path
from typing import Any

from poan_runtime.commands.guard import in_words
from poan_runtime.commands.outputs import (
    Job,
    check_distinct,
    jobs_to_do,
    plan_jobs,
    scans_of,
    takes_folder,
)
from poan_runtime.commands.overlap import Turns, Work, overlapped
from poan_runtime.commands.progress import Progress
from poan_runtime.commands.say import QUIET, Voice, level_of
from poan_runtime.commands.say_outcome import half_step, say_outcome
from poan_runtime.commands.server_options import access_of
from poan_runtime.engines.backend import EngineOptions, spoken
from poan_runtime.errors import PoanError
from poan_runtime.images.dicom.recognise import is_dicom
from poan_runtime.images.formats import WRITTEN, open_sink, open_source
from poan_runtime.images.nifti.header import check_dtype
from poan_runtime.images.source import Sink, Source
from poan_runtime.images.suspects import (
    contrast_of,
    contrast_told,
    looks_like_labels,
    other_contrast,
)
from poan_runtime.models.find import (
    AUTO,
    Trust,
    auto_model,
    exists,
    is_shipped,
    other_names,
)
from poan_runtime.network import Network, Settings, load_network
from poan_runtime.report.document import scan_report, write_report
from poan_runtime.report.html_page import HtmlPage, is_page
from poan_runtime.report.maps import MapFile, changed, uncertainty
from poan_runtime.report.preview import Preview
from poan_runtime.super_resolve import Opens, Outcome, upscale_file


def run(args: argparse.Namespace) -> int:
    """Super-resolve the scans one after the other; 2 if any of them failed."""
    voice = Voice("poan-run", level_of(quiet=args.quiet, verbose=args.verbose))
    if args.dtype is not None:
        check_dtype(args.dtype)
    trust = trust_of(args)
    check_order(args)
    scans = scans_of(args.scans)
    jobs = plan_jobs(scans, args, voice, several=takes_folder(args))
    if is_page(args.report) and len(jobs) > 1:
        raise PoanError(f"{args.report}: a page shows one scan; name a .json for several")
    check_for_dicom(args, scans)
    reports: list[dict[str, Any]] = []
    missing = [job.scan for job in jobs if not exists(job.scan)]
    for scan in missing:
        reports.append(failure(scan, f"{scan}: no such file or folder", voice))
    todo = jobs_to_do([job for job in jobs if job.scan not in missing], args, voice)
    if not todo:
        if args.report is not None:
            voice.say(f"{args.report}: nothing ran, so no report is written")
        return 2 if missing else 0
    failed = bool(missing)
    by_model = models_of(args, [job.scan for job in todo], voice)
    if args.report is not None and len(by_model) > 1:
        raise PoanError(f"--report: tells of one model, the scans need {', '.join(by_model)}")
    for name, own in by_model.items():
        jobs = [job for job in todo if job.scan in own]
        with load_network(name, options_of(args), trust) as network:
            introduce(name, network, voice)
            failed |= run_jobs(args, network, jobs, reports, voice)
            if args.report is not None and not is_page(args.report):
                write_report(Path(args.report), network, reports)
    return 2 if failed else 0


def check_order(args: argparse.Namespace) -> None:
    """Refuse a scan in the place of the model."""
    models = [word for word in args.scans if is_shipped(word) and not exists(Path(word))]
    if models and not is_shipped(args.model):
        raise PoanError(f"{args.model}, {models[0]}: the model comes first, the scans after it")


def check_for_dicom(args: argparse.Namespace, scans: list[Path]) -> None:
    """Refuse options of DICOM series where no scan is DICOM."""
    named = {
        "--series": args.series,
        "--uid-root": args.uid_root,
        "--uid-seed": args.uid_seed,
        "--enhanced": args.enhanced,
        "--burn-in": args.burn_in,
    }
    if (given := [name for name, value in named.items() if value]) and not any(
        map(is_dicom, scans)
    ):
        raise PoanError(f"{', '.join(given)}: for DICOM, and none of the scans is that")


def models_of(args: argparse.Namespace, scans: list[Path], voice: Voice) -> dict[str, list[Path]]:
    """Which model runs which scans: the one that was named, or by ``auto`` each scan's own."""
    if args.model not in AUTO:
        return {args.model: scans}
    found: dict[str, list[Path]] = {}
    for scan in scans:
        contrast = contrast_of_scan(scan, args.series)
        name = auto_model(args.model, contrast)
        told = f"contrast {contrast}" if contrast else "contrast not told"
        voice.say(f"{scan.name}: {told}: model {name}")
        found.setdefault(name, []).append(scan)
    return found


def contrast_of_scan(scan: Path, series: str | None) -> str | None:
    """T1, T2, PD or FLAIR as the scan's name tells, or its DICOM series description."""
    if not is_dicom(scan):
        return contrast_of(scan.name)
    with contextlib.closing(open_source(scan, series=series)) as source:
        return contrast_told(source)


def run_jobs(
    args: argparse.Namespace,
    network: Network,
    jobs: list[Job],
    reports: list[dict[str, Any]],
    voice: Voice,
) -> bool:
    """Super-resolve scans with one model, adding to ``reports``; whether one of them failed."""
    work: list[Work] = [functools.partial(run_one, args, network, job, voice) for job in jobs]
    on_gpu = network.opened.device.startswith("cuda")
    failed = False
    for job, one in zip(jobs, overlapped(work) if on_gpu else iter(work), strict=True):
        try:
            reports.append(one())
        except (PoanError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            reports.append(failure(job.scan, in_words(error), voice))
            failed = True
    return failed


def list_series(paths: list[str], voice: Voice) -> int:
    """Print what series there are in DICOM folders."""
    from poan_runtime.commands.run_dicom import series_lines

    for path in paths:
        lines, broken = series_lines(Path(path))
        for line in lines:
            voice.say(line)
        for line in broken:
            voice.warn(line)
    return 0


def explain(args: argparse.Namespace) -> int:
    """Print plan and predicted cost of each scan; nothing is written but the report."""
    from poan_runtime.report.explain import as_json, as_text, explain_scan, write_json

    voice = Voice("poan-run", level_of(quiet=False, verbose=args.verbose))
    check_order(args)
    scans = scans_of(args.scans)
    if is_page(args.report):
        raise PoanError(f"{args.report}: a plan is written as JSON")
    if args.report is not None:
        check_distinct(scans, [Path(args.report)])
        if os.path.exists(args.report) and not args.overwrite:
            raise PoanError(f"{args.report}: there already; --overwrite replaces it")
    for path in scans:
        if not exists(path):
            raise PoanError(f"{path}: no such file or folder")
    documents = []
    for name, own in models_of(args, scans, voice).items():
        with load_network(name, options_of(args), trust_of(args)) as network:
            for path in own:
                with contextlib.closing(open_source(path, series=args.series)) as source:
                    found = explain_scan(source, network, settings_of(args))
                    documents.append(as_json(source, found))
                for line in as_text(documents[-1]).splitlines():
                    voice.say(line)
                voice.detail(f"why        {network.opened.reason}")
            for notice in network.notices:
                voice.warn(notice)
    if args.report is not None:
        write_json(Path(args.report), documents)
    return 0


def introduce(name: str, network: Network, voice: Voice) -> None:
    """Say which file runs, and in what; ``name`` is what the user calls the model."""
    model, opened = network.model, network.opened
    precision = opened.precision or model.file.precision
    if (meant := other_names().get(name)) is not None:
        voice.say(f"{name}: another name of {meant}")
    voice.say(
        f"{model.manifest.name}: {model.path}, sha256 {model.file.sha256[:12]}, "
        f"in {spoken(opened.name, opened.device)}, {precision}"
    )
    gains = model.manifest.gains
    if gains and min(gains.values()) < 0:
        kind, gain = min(gains.items(), key=lambda item: item[1])
        voice.warn(f"{model.manifest.name}: {gain:+.2f} dB against interpolation on {kind} LR")
    elif not gains:
        voice.say(f"{model.manifest.name}: its gain over interpolation is not stated")
    voice.detail(f"{opened.name} {opened.version} on {opened.device}: {opened.reason}")


def failure(scan: Path, line: str, voice: Voice) -> dict[str, Any]:
    """Say what went wrong with a scan; its part of the report."""
    voice.error(line)
    return {"input": {"path": str(scan)}, "error": line}


def run_one(
    args: argparse.Namespace,
    network: Network,
    job: Job,
    voice: Voice,
    turns: Turns | None = None,
) -> dict[str, Any]:
    """Super-resolve one scan, say so, and return its part of the report."""
    start = time.perf_counter()
    scratch = None if "TMPDIR" in os.environ else job.output.parent
    hashed = args.report is not None
    opened = open_source(job.scan, scratch, hashed=hashed, series=args.series)
    with contextlib.closing(opened) as source:
        if not args.labels and (why := looks_like_labels(source)):
            raise PoanError(
                f"{job.scan}: looks like a label map ({why}), and labels cannot be interpolated; "
                "--labels runs it all the same"
            )
        unpacked_s = time.perf_counter() - start
        quiet = voice.level == QUIET
        page = HtmlPage(source, args.axis) if is_page(args.report) else None
        outcome = make(args, network, job, source, scratch, turns, page, quiet=quiet)
        total_s = time.perf_counter() - start
        network = outcome.network
        contrast = other_contrast(source, network.model.manifest.contrast)
        warnings = [*network.notices, *outcome.warnings, *([contrast] if contrast else [])]
        say_outcome(job, outcome, warnings, total_s, half_step(source, args.dtype), voice)
        if page is not None:
            page.write(Path(args.report), network, outcome, source, warnings, total_s)
        if args.report is None:
            return {}
        settings = settings_of(args)
        report = scan_report(source, job.output, settings, outcome, total_s)
        report["seconds"]["open_and_unpack"] = unpacked_s
        report["warnings"] = warnings
        return report


def make(
    args: argparse.Namespace,
    network: Network,
    job: Job,
    source: Source,
    scratch: Path | None,
    turns: Turns | None,
    page: HtmlPage | None,
    *,
    quiet: bool,
) -> Outcome:
    """Write the scan's output, and the preview and the maps where they are wanted."""
    progress, picture = Progress(job.scan.name, quiet=quiet), Preview()
    maps = _maps(job, source, scratch)
    with contextlib.ExitStack() as stack:
        for written in maps.values():
            stack.callback(written.close)
        try:
            outcome = upscale_file(
                source,
                _target(args, source, job, scratch),
                network,
                settings_of(args),
                dtype=args.dtype,
                saturate=args.saturate,
                scratch=scratch,
                consumers=[
                    progress,
                    picture,
                    *maps.values(),
                    *([page] if page else []),
                    *([turns.check] if turns else []),
                ],
                turn=turns.lock if turns else None,
            )
        finally:
            progress.end()
        for option, written in maps.items():
            if not written.finish():
                raise PoanError(f"{option}: {network.model.path}: lies on the kspace grid")
        if job.preview is not None:
            try:
                picture.write(job.preview, outcome.geometry)
            except PoanError as error:
                raise PoanError(f"{error}; {job.output} is complete") from None
    return outcome


def _maps(job: Job, source: Source, scratch: Path | None) -> dict[str, MapFile]:
    """The maps that are wanted, by the option that asks for them."""

    def to(path: Path, note: str) -> Sink:
        return open_sink(path, source, note=note, dtype="float32", scratch=scratch)

    maps = {}
    if job.changed is not None:
        maps["--changed-map"] = MapFile(to(job.changed, "poan: LR - down(SR)"), changed)
    if job.uncertainty is not None:
        sink = to(job.uncertainty, "poan: std over 8 flips, rotations")
        maps["--uncertainty"] = MapFile(sink, uncertainty)
    return maps


def _target(
    args: argparse.Namespace, source: Source, job: Job, scratch: Path | None
) -> Path | Opens:
    """A file by its path; a derived series by what opens its sink."""
    if job.output.name.endswith(WRITTEN) or not is_dicom(source.path or job.output):
        return job.output
    from poan_runtime.commands.run_dicom import derived_series

    return derived_series(args, source, job, settings_of(args), scratch)


def trust_of(args: argparse.Namespace) -> Trust | None:
    """The facts about a bare .onnx."""
    if not args.trust:
        if args.scale or args.tile:
            raise PoanError(
                "--scale and --tile: expected --trust with them; a manifest states its own"
            )
        return None
    return Trust(
        scale=args.scale or 0,
        tile=args.tile or 0,
        halo=args.halo or 0,
        overlap=args.overlap,
        grid=args.grid,
    )


def options_of(args: argparse.Namespace) -> EngineOptions:
    """Which engine the arguments ask for."""
    return EngineOptions(
        backend=args.backend,
        device=args.device,
        threads=args.threads,
        precision=args.precision,
        access=access_of(args),
    )


def settings_of(args: argparse.Namespace) -> Settings:
    """How the arguments ask for a scan to be run."""
    return Settings(
        axis=args.axis,
        halo=args.halo,
        overlap=args.overlap,
        batch=args.batch,
        skip=not args.no_skip,
        self_ensemble=args.self_ensemble,
        uncertainty=args.uncertainty is not None,
        threads=args.threads,
        native=args.native,
        keep_measured=args.keep_measured,
        like_input=args.like_input,
        keep_negative=args.keep_negative,
    )
