"""What `poan-run` does once its arguments are parsed."""

import argparse
import contextlib
import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

from poan_runtime.commands.progress import Progress
from poan_runtime.commands.server_options import access_of
from poan_runtime.engines.backend import EngineOptions, open_backend
from poan_runtime.errors import PoanError
from poan_runtime.images.dicom.recognise import is_dicom
from poan_runtime.images.formats import NIFTI_NAMES, open_source
from poan_runtime.images.nifti.read import scan_files
from poan_runtime.images.source import Sink, Source
from poan_runtime.models.find import Trust, find_model, shipped_models
from poan_runtime.models.manifest import read_manifest
from poan_runtime.network import Network, Settings, load_network
from poan_runtime.report.changed_map import ChangedMap
from poan_runtime.report.document import scan_report, write_report
from poan_runtime.report.html_page import HtmlPage
from poan_runtime.report.preview import Preview
from poan_runtime.super_resolve import Outcome, upscale_file

SUFFIXES = (".nii.gz", ".nii", ".hdr.gz", ".img.gz", ".hdr", ".img", ".gz")


def list_models() -> int:
    """Print the shipped models."""
    for folder in shipped_models():
        manifest = read_manifest(folder)
        _say(
            f"{folder.name:12} {manifest.contrast} x{manifest.scale}, {manifest.arch}, "
            f"{manifest.parameters:,} parameters, parity {manifest.parity.verdict}"
        )
    if not shipped_models():
        _say("no models are shipped with this installation")
    return 0


def verify(args: argparse.Namespace) -> int:
    """Judge a model file on this machine by its stored vectors: 0 pass, 3 fail.

    What is named is what runs, or the command fails: the verdict on a plan is not given by an
    ONNX file.
    """
    from poan_runtime.engines import verify as parity
    from poan_runtime.engines.nvidia import device_index
    from poan_runtime.engines.tensorrt.build.judge import inside_of

    model = find_model(args.model, judged=False)
    device = "cuda" if model.file.kind == "plan" and args.device == "auto" else args.device
    options = EngineOptions(
        backend=args.backend, device=device, threads=args.threads, precision=args.precision
    )
    opened = open_backend(model, options, judged=False)
    _say(f"{opened.name} {opened.version} on {opened.device}: {opened.reason}")
    if args.precision == "bf16" and opened.precision != "bf16":
        raise PoanError(f"--precision bf16: {'; '.join(opened.notices)}")
    inside = inside_of(model, device_index(device))
    found = parity.verify(model, opened.backend, opened.precision, inside)
    for line in parity.check_lines(found):
        _say(line)
    if opened.device.startswith("cuda"):
        verdict = parity.write_gpu_verdict(model, opened, found)
    elif opened.precision in (None, model.file.precision):
        verdict = parity.write_verdict(model.path.parent, model.file.name, found)
    else:
        verdict = parity.write_cpu_verdict(model, opened.precision, opened.version, found)
    for line in parity.verdict_lines(model, found, verdict):
        _say(line)
    return 0 if verdict.verdict == "pass" else 3


def run(args: argparse.Namespace) -> int:
    """Super-resolve the scans one after the other; 2 if any of them failed."""
    scans = [Path(scan) for scan in args.scans]
    outputs = _scan_outputs(scans, args.output)
    previews: list[Path | None] = [None] * len(scans)
    if args.preview is not None:
        previews = [*_outputs(scans, args.preview, "_desc-sr.png", (".png",))]
    maps: list[Path | None] = [None] * len(scans)
    if args.changed_map is not None:
        maps = [*_outputs(scans, args.changed_map, "_desc-changed.nii.gz", NIFTI_NAMES)]
    reports_to = [] if args.report is None else [Path(args.report)]
    if _is_page(args) and len(scans) > 1:
        raise PoanError(f"{args.report}: a page shows one scan; name a .json for several")
    files = [*outputs, *(path for path in (*previews, *maps) if path), *reports_to]
    _check_distinct(scans, files, [o for o in outputs if not o.name.endswith(NIFTI_NAMES)])
    reports: list[dict[str, Any]] = []
    failed = False
    with _load(args) as network:
        opened = network.opened
        _say(f"{opened.name} {opened.version} on {opened.device}: {opened.reason}")
        work = zip(scans, outputs, previews, maps, strict=True)
        jobs = [functools.partial(_run_one, args, network, *one) for one in work]
        for job in _overlapped(jobs) if opened.device.startswith("cuda") else jobs:
            try:
                reports.append(job())
            except PoanError as error:
                _say(f"poan-run: {error}", sys.stderr)
                failed = True
        if args.report is not None and reports and not _is_page(args):
            write_report(Path(args.report), network, reports)
    return 2 if failed else 0


def list_series(paths: list[str]) -> int:
    """Print what series there are in DICOM folders."""
    from poan_runtime.commands.run_dicom import series_lines

    for path in paths:
        lines, broken = series_lines(Path(path))
        for line in lines:
            _say(line)
        for line in broken:
            _say(f"poan-run: warning: {line}", sys.stderr)
    return 0


def _scan_outputs(scans: list[Path], wanted: str | None) -> list[Path]:
    """As `_outputs`; a DICOM scan goes to a folder unless a NIfTI file is named."""
    series = [is_dicom(scan) for scan in scans]
    if not any(series) or (wanted or "").endswith(NIFTI_NAMES):
        return _outputs(scans, wanted, "_desc-sr.nii.gz", NIFTI_NAMES)
    if wanted is not None and len(scans) == 1:
        return [Path(wanted)]
    named = _outputs(scans, wanted, "_desc-sr.nii.gz", NIFTI_NAMES)
    folders = [path.with_name(path.name.removesuffix(".nii.gz")) for path in named]
    return [f if d else n for n, f, d in zip(named, folders, series, strict=True)]


def _is_page(args: argparse.Namespace) -> bool:
    """Whether the report is a page to look at, not JSON."""
    return (args.report or "").endswith((".html", ".htm"))


def _target(
    args: argparse.Namespace, source: Source, output: Path, network: Network, scratch: Path | None
) -> Path | Sink:
    """A NIfTI file by its path, a derived DICOM series by its sink."""
    if output.name.endswith(NIFTI_NAMES) or not is_dicom(source.path or output):
        return output
    from poan_runtime.commands.run_dicom import derived_series

    return derived_series(args, source, output, network, _settings(args), scratch)


class _Turns:
    """The engine's lock, and whether all is to stop."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.stopped = threading.Event()

    def check(self, *_: object) -> None:
        """End a run at its next slab, as an exception does, once the command was told to stop."""
        if self.stopped.is_set():
            raise PoanError("stopped")


Job = Callable[..., dict[str, Any]]


def _overlapped(jobs: Sequence[Job]) -> Iterator[Job]:
    """The jobs, of which the next is read and the last written while one is on the GPU."""
    turns = _Turns()
    pool = ThreadPoolExecutor(2, thread_name_prefix="poan-scan")
    try:
        started = [pool.submit(job, turns) for job in jobs]
        for one in started:
            yield one.result
    finally:
        turns.stopped.set()
        pool.shutdown(cancel_futures=True)


def _load(args: argparse.Namespace) -> Network:
    trust = None
    if not args.trust and (args.scale or args.tile):
        raise PoanError("--scale and --tile: expected --trust with them; a manifest states its own")
    if args.trust:
        trust = Trust(
            scale=args.scale or 0,
            tile=args.tile or 0,
            halo=args.halo or 0,
            overlap=args.overlap,
            grid=args.grid,
        )
    options = EngineOptions(
        backend=args.backend,
        device=args.device,
        threads=args.threads,
        precision=args.precision,
        access=access_of(args),
    )
    return load_network(args.model, options, trust)


def _settings(args: argparse.Namespace) -> Settings:
    return Settings(
        axis=args.axis,
        halo=args.halo,
        overlap=args.overlap,
        batch=args.batch,
        skip=not args.no_skip,
        self_ensemble=args.self_ensemble,
        threads=args.threads,
        native=args.native,
        keep_measured=args.keep_measured,
    )


def explain(args: argparse.Namespace) -> int:
    """Print plan and predicted cost of each scan; nothing is written but the report."""
    from poan_runtime.report.explain import as_json, as_text, explain_scan, write_json

    if args.report is not None:
        _check_distinct([Path(path) for path in args.scans], [Path(args.report)])
    if _is_page(args):
        raise PoanError(f"{args.report}: a plan is written as JSON")
    documents = []
    with _load(args) as network:
        for path in args.scans:
            with contextlib.closing(open_source(path, series=args.series)) as source:
                found = explain_scan(source, network, _settings(args))
                documents.append(as_json(network, source, found))
            _say(as_text(documents[-1]))
        for notice in network.notices:
            _say(f"poan-run: warning: {notice}", sys.stderr)
    if args.report is not None:
        write_json(Path(args.report), documents)
    return 0


def _run_one(
    args: argparse.Namespace,
    network: Network,
    path: Path,
    output: Path,
    preview: Path | None,
    changed: Path | None,
    turns: _Turns | None = None,
) -> dict[str, Any]:
    """Super-resolve one scan, say so, and return its part of the report."""
    start = time.perf_counter()
    settings = _settings(args)
    scratch = None if "TMPDIR" in os.environ else output.parent
    progress, picture = Progress(path.name), Preview()
    opened = open_source(path, scratch, hashed=args.report is not None, series=args.series)
    changes = None if changed is None else ChangedMap(changed)
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(contextlib.closing(opened))
        if changes is not None:
            stack.callback(changes.close)
        unpacked_s = time.perf_counter() - start
        page = HtmlPage(source, settings.axis) if _is_page(args) else None
        try:
            outcome = upscale_file(
                source,
                _target(args, source, output, network, scratch),
                network,
                settings,
                dtype=args.dtype,
                scratch=scratch,
                consumers=[
                    progress,
                    picture,
                    *([changes] if changes else []),
                    *([page] if page else []),
                    *([turns.check] if turns else []),
                ],
                turn=turns.lock if turns else None,
            )
        finally:
            progress.end()
        if changes is not None and not changes.finish():
            raise PoanError(f"--changed-map: {network.model.path}: lies on the kspace grid")
        if preview is not None:
            try:
                picture.write(preview, outcome.geometry)
            except PoanError as error:
                raise PoanError(f"{error}; {output} is complete") from None
        total_s = time.perf_counter() - start
        _say_outcome(path, output, outcome, network, total_s)
        if page is not None:
            page.write(Path(args.report), network, outcome, source, total_s)
        if args.report is None:
            return {}
        report = scan_report(source, output, network, settings, outcome, total_s)
        report["seconds"]["open_and_unpack"] = unpacked_s
        return report


def _say_outcome(
    path: Path, output: Path, outcome: Outcome, network: Network, total_s: float
) -> None:
    """One line on what was written, one for each warning."""
    shape = "x".join(map(str, outcome.geometry.fine_shape))
    tiles = outcome.timings
    _say(
        f"{output}: {shape}, {tiles.tiles_run} tiles run, {tiles.tiles_skipped} skipped, "
        f"{total_s:.1f} s"
    )
    for line in _measured_lines(outcome):
        _say(f"{path.name}: {line}")
    for warning in (*network.notices, *outcome.warnings):
        _say(f"poan-run: warning: {path.name}: {warning}", sys.stderr)


def _measured_lines(outcome: Outcome) -> list[str]:
    """What the scanner measured of this scan, and what of that the network changed."""
    found = outcome.measured
    if found is None or outcome.faithfulness is None:
        return []
    lines = [outcome.faithfulness]
    if found.native.is_zero_filled:
        used = "super-resolved from there" if outcome.native_used else "taken as it comes"
        lines.insert(0, f"zero-filled by its scanner, {found.native}; {used}")
    return lines


def _outputs(
    scans: list[Path], wanted: str | None, ending: str, suffixes: tuple[str, ...]
) -> list[Path]:
    """Where each scan's output goes: beside it, into a folder, or to the one file named."""
    names = [scan.with_name(_stem(scan) + ending) for scan in scans]
    if wanted is None:
        return names
    folder = Path(wanted)
    if len(scans) > 1 or folder.is_dir() or wanted.endswith(os.sep):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PoanError(f"{folder}: expected a folder: {error.strerror}") from None
        return [folder / name.name for name in names]
    if not wanted.endswith(suffixes):
        raise PoanError(f"{wanted}: expected a name that ends in {' or '.join(suffixes)}")
    return [folder]


def _stem(scan: Path) -> str:
    for suffix in SUFFIXES:
        if scan.name.lower().endswith(suffix):
            return scan.name[: -len(suffix)]
    return scan.name


def _check_distinct(scans: list[Path], outputs: list[Path], folders: Sequence[Path] = ()) -> None:
    """No output may replace an input or another output, nor lack its folder.

    ``folders`` are the outputs that are folders themselves.
    """
    inputs = {file.resolve() for scan in scans if scan.is_file() for file in scan_files(scan)}
    seen: set[Path] = set()
    for output in outputs:
        if not output.parent.is_dir():
            raise PoanError(f"{output}: there is no folder {output.parent}")
        if output.is_dir() and output not in folders:
            raise PoanError(f"{output}: expected a file's name, this is a folder")
        resolved = output.resolve()
        if resolved in inputs:
            raise PoanError(f"{output}: would replace an input; name another file")
        if resolved in seen:
            raise PoanError(f"{output}: two results would be written to it; name them apart")
        seen.add(resolved)


def _say(line: str, stream: TextIO | None = None) -> None:
    stream = stream or sys.stdout
    stream.write(f"{line}\n")
    stream.flush()
