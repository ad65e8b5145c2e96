"""Which scans are meant, where the result of each goes, and what may be replaced there."""

import argparse
import dataclasses
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from poan_runtime.commands.say import Voice, few
from poan_runtime.errors import PoanError
from poan_runtime.images.dicom.recognise import is_dicom
from poan_runtime.images.formats import FOUND, NIFTI, READ, WRITTEN
from poan_runtime.images.nifti.read import scan_files
from poan_runtime.models.find import exists
from poan_runtime.report.html_page import PAGES

BIDS = re.compile(r"(sub-[A-Za-z0-9]+(?:_[a-z]+-[A-Za-z0-9+]+)*?)(?:_desc-([A-Za-z0-9]+))?_(\w+)")
REPORTS = (".json", *PAGES)
RESULT = re.compile(r"_desc-(\w*[sS]r|\w*[cC]hanged|\w*[uU]ncertainty)(_|\.|$)")

TWICE = "{}: two results would be written to it; name them apart"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One scan and where what becomes of it goes; None for what nobody asked for."""

    scan: Path
    output: Path
    preview: Path | None = None
    changed: Path | None = None
    uncertainty: Path | None = None
    nifti: Path | None = None
    """Beside a derived DICOM series."""

    @property
    def files(self) -> list[Path]:
        """All that will be written."""
        beside = (self.preview, self.changed, self.uncertainty, self.nifti)
        return [self.output, *(path for path in beside if path is not None)]


def scans_of(words: Sequence[str]) -> list[Path]:
    """The scans that the arguments name: files, DICOM folders, and each NIfTI file of a folder.

    Of a folder its own files are taken, without the results of earlier runs.
    """
    scans: list[Path] = []
    for word in words:
        path = Path(word)
        if not os.path.isdir(path) or is_dicom(path):
            scans.append(path)
            continue
        files = sorted(file for file in path.iterdir() if file.name.lower().endswith(FOUND))
        found = [file for file in files if not RESULT.search(file.name)]
        if not found:
            raise PoanError(f"{path}: there is neither a NIfTI file nor DICOM in this folder")
        scans += found
    return scans


def takes_folder(args: argparse.Namespace) -> bool:
    """Whether ``--output`` is a folder even for one scan: for several arguments, and for a folder
    of scans, unless it is a file's name."""
    if len(args.scans) > 1:
        return True
    path = Path(args.scans[0])
    named_file = args.output is None or args.output.endswith(WRITTEN)
    return not named_file and os.path.isdir(path) and not is_dicom(path)


def plan_jobs(
    scans: list[Path], args: argparse.Namespace, voice: Voice, *, several: bool = False
) -> list[Job]:
    """Where each scan's results go; results of the others among the scans are left out.

    ``several`` takes ``--output`` for a folder even for one scan. Raises PoanError where an
    output would replace an input or another output, or lacks its folder.
    """
    several = several or len(scans) > 1
    outputs = _scan_outputs(scans, args.output, several)
    results = {path.resolve() for path in outputs}
    among = [scan for scan in scans if scan.resolve() in results]
    if among and len(scans) > 1:
        voice.say(f"left out, results of the others: {few([scan.name for scan in among])}")
        rest = [scan for scan in scans if scan not in among]
        return plan_jobs(rest, args, voice, several=True)
    previews = _beside(scans, args.preview, "sr", ".png", (".png",), several)
    changes = _beside(scans, args.changed_map, "changed", ".nii.gz", WRITTEN, several)
    spreads = _beside(scans, args.uncertainty, "uncertainty", ".nii.gz", WRITTEN, several)
    nifti = _nifti(args, outputs)
    jobs = [
        Job(scan=scan, output=out, preview=png, changed=changed, uncertainty=spread, nifti=nifti)
        for scan, out, png, changed, spread in zip(
            scans, outputs, previews, changes, spreads, strict=True
        )
    ]
    reports = [] if args.report is None else [Path(args.report)]
    check_distinct(
        scans,
        [path for job in jobs for path in job.files] + reports,
        [path for path in outputs if not path.name.endswith(WRITTEN)],
    )
    if reports and not reports[0].is_dir() and not args.report.endswith(REPORTS):
        raise PoanError(f"{args.report}: expected a name that ends in {' or '.join(REPORTS)}")
    return jobs


def _beside(
    scans: list[Path],
    wanted: str | None,
    label: str,
    ending: str,
    suffixes: tuple[str, ...],
    several: bool,
) -> list[Path | None]:
    """A file for each scan as `named`, or None for each where nobody asked for one."""
    if wanted is None:
        return [None] * len(scans)
    return [*named(scans, wanted, label, ending, suffixes, several)]


def _nifti(args: argparse.Namespace, outputs: list[Path]) -> Path | None:
    """The file that ``--nifti`` names, which goes with one derived series."""
    if args.nifti is None:
        return None
    if len(outputs) > 1 or outputs[0].name.endswith(WRITTEN):
        raise PoanError("--nifti: goes with one derived DICOM series; else -o names the file")
    if not args.nifti.endswith(NIFTI.written):
        raise PoanError(f"{args.nifti}: expected a name that ends in {' or '.join(NIFTI.written)}")
    return Path(args.nifti)


def jobs_to_do(jobs: list[Job], args: argparse.Namespace, voice: Voice) -> list[Job]:
    """The jobs whose output is not there yet, by ``--skip-existing``; all by ``--overwrite``.

    Raises PoanError where something is there and neither was said.
    """
    if args.overwrite:
        return jobs
    reports = [Path(args.report)] if args.report is not None else []
    if not args.skip_existing:
        there = [path for job in jobs for path in job.files if _is_there(path)]
        if there := there + [path for path in reports if path.exists()]:
            raise PoanError(
                f"{few(there)}: there already; --overwrite replaces, --skip-existing goes on "
                "with the scans that have no output yet"
            )
    for job in jobs:
        if _is_there(job.output):
            voice.say(f"{job.output}: there already, skipped")
    return [job for job in jobs if not _is_there(job.output)]


def named(
    scans: list[Path],
    wanted: str | None,
    label: str,
    ending: str,
    suffixes: tuple[str, ...],
    several: bool,
) -> list[Path]:
    """A file for each scan: beside it, in a folder, or the one file that is wanted."""
    names = [result_name(scan, label) + ending for scan in scans]
    if wanted is None:
        places = [Path(os.path.abspath(scan)) if not scan.name else scan for scan in scans]
        return [place.parent / name for place, name in zip(places, names, strict=True)]
    folder = Path(wanted)
    if not several and not os.path.isdir(folder) and not wanted.endswith(os.sep):
        if not wanted.endswith(suffixes):
            raise PoanError(f"{wanted}: expected a name that ends in {' or '.join(suffixes)}")
        return [folder]
    if wanted.endswith(suffixes) and not os.path.isdir(folder):
        raise PoanError(f"{wanted}: one file for several scans; name a folder, as {wanted}/")
    paths = [folder / name for name in _apart(scans, names)]
    for path, times in Counter(paths).items():
        if times > 1:  # before the folder is made
            raise PoanError(TWICE.format(path))
    try:
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PoanError(f"{folder}: expected a folder: {error.strerror}") from None
    return paths


def result_name(scan: Path, label: str) -> str:
    """A result's name without its ending; the entity of BIDS stands in BIDS's place.

    >>> result_name(Path("scan.nii.gz"), "sr"), result_name(Path("sub-1_run-2_T2w.nii.gz"), "sr")
    ('scan_desc-sr', 'sub-1_run-2_desc-sr_T2w')
    >>> result_name(Path("sub-1_desc-preproc_T1w.nii"), "sr")
    'sub-1_desc-preprocSr_T1w'
    """
    stem = stem_of(scan)
    bids = BIDS.fullmatch(stem)
    if bids is None:
        return f"{stem}_desc-{label}"
    entities, before, suffix = bids.groups()
    return f"{entities}_desc-{before + label.capitalize() if before else label}_{suffix}"


def stem_of(scan: Path) -> str:
    """A scan's name without what tells its format."""
    name = scan.name or Path(os.path.abspath(scan)).name or "scan"
    for ending in READ:
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name


def check_distinct(scans: list[Path], outputs: list[Path], folders: Sequence[Path] = ()) -> None:
    """No output may replace an input or another output, nor lack its folder.

    ``folders`` are the outputs that are folders themselves.
    """
    inputs = {file.resolve() for scan in scans if os.path.isfile(scan) for file in scan_files(scan)}
    seen: set[Path] = set()
    for output in outputs:
        if not os.path.isdir(output.parent):
            raise PoanError(f"{output}: there is no folder {output.parent}")
        if os.path.isdir(output) and output not in folders:
            raise PoanError(f"{output}: expected a file's name, this is a folder")
        resolved = output.resolve()
        if resolved in inputs:
            raise PoanError(f"{output}: would replace an input; name another file")
        if resolved in seen:
            raise PoanError(TWICE.format(output))
        seen.add(resolved)


def _scan_outputs(scans: list[Path], wanted: str | None, several: bool) -> list[Path]:
    """As `named`; a DICOM scan goes to a folder unless a NIfTI file is named."""
    series = [is_dicom(scan) for scan in scans]
    if not any(series) or (wanted or "").endswith(WRITTEN):
        return named(scans, wanted, "sr", ".nii.gz", WRITTEN, several)
    if wanted is not None and not several:
        return [Path(wanted)]
    files = named(scans, wanted, "sr", ".nii.gz", WRITTEN, several)
    folders = [path.with_name(path.name.removesuffix(".nii.gz")) for path in files]
    return [f if d else n for n, f, d in zip(files, folders, series, strict=True)]


def _apart(scans: list[Path], names: list[str]) -> list[Path]:
    """The names; where two are alike, below the folders that tell their scans apart."""
    counts = Counter(names)
    if max(counts.values()) == 1:
        return [Path(name) for name in names]
    folders = [Path(os.path.abspath(scan)).parent for scan in scans]
    above = Path(os.path.commonpath(folders))
    return [
        folder.relative_to(above) / name if counts[name] > 1 else Path(name)
        for folder, name in zip(folders, names, strict=True)
    ]


def _is_there(path: Path) -> bool:
    """Whether there is a file, or a folder with something in it."""
    return any(path.iterdir()) if os.path.isdir(path) else exists(path)
