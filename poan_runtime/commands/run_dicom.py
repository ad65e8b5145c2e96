"""What `poan-run` does with DICOM alone: list series, and describe a derived one."""

import argparse
from pathlib import Path

from poan_runtime.commands.outputs import Job
from poan_runtime.errors import PoanError
from poan_runtime.extras import needs
from poan_runtime.images.both import Both
from poan_runtime.images.formats import open_sink
from poan_runtime.images.source import Sink, Source
from poan_runtime.network import Network, Settings
from poan_runtime.super_resolve import Opens


def series_lines(path: Path) -> tuple[list[str], list[str]]:
    """The table of a folder's series, and a line for each broken file."""
    with needs("pydicom", "dicom"):
        from poan_runtime.images.dicom.series import find_series, table
    if not path.exists():
        raise PoanError(f"{path}: no such file or folder")
    found, broken = find_series(path)
    return table(found), broken


def derived_series(
    args: argparse.Namespace,
    source: Source,
    job: Job,
    settings: Settings,
    scratch: Path | None,
) -> Opens:
    """What opens the derived series of an open DICOM source, with a NIfTI file where one is asked
    for. The series names the model file that runs."""
    with needs("pydicom", "dicom"):
        from poan_runtime.images.dicom.derived import DerivedSeries
        from poan_runtime.images.dicom.provenance import Identity
        from poan_runtime.images.dicom.read import DicomSource
        from poan_runtime.report.provenance import provenance_of
    assert isinstance(source, DicomSource)
    if args.dtype is not None:
        raise PoanError("--dtype: a derived DICOM series keeps 16 bits; name -o x.nii.gz for it")

    def opens(network: Network) -> Sink:
        series = DerivedSeries(
            source,
            job.output,
            provenance_of(network, settings),
            identity=Identity(root=args.uid_root, seed=args.uid_seed),
            burn_in=args.burn_in,
            enhanced=args.enhanced,
            scratch=scratch,
        )
        if job.nifti is None:
            return series
        note, threads = f"poan {network.model.manifest.name}", settings.threads
        nifti = open_sink(job.nifti, source, note=note, scratch=scratch, threads=threads)
        return Both(series, nifti)

    return opens
