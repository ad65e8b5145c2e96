"""Which format a path is in: the one table of what can be read and written.

A new format is a line of `FORMATS` and a branch of `open_source`; one that is written also a branch
of `open_sink`. DICOM is told by its content and has no ending here.
"""

from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from poan_runtime.errors import PoanError
from poan_runtime.extras import needs
from poan_runtime.images.dicom.recognise import is_dicom
from poan_runtime.images.mgh import MghSource
from poan_runtime.images.nifti.header import ScanHeader, plain_header
from poan_runtime.images.nifti.read import open_scan
from poan_runtime.images.nifti.write import NiftiSink
from poan_runtime.images.source import Sink, Source


class Format(NamedTuple):
    """The endings of one format's file names, in lower case.

    ``read`` ends the names of its scans, ``found`` those that are taken where a folder of scans
    is named, ``written`` its outputs.
    """

    read: tuple[str, ...]
    found: tuple[str, ...]
    written: tuple[str, ...] = ()


NIFTI = Format(
    read=(".nii", ".nii.gz", ".hdr", ".hdr.gz", ".img", ".img.gz", ".gz"),
    found=(".nii", ".nii.gz"),
    written=(".nii", ".nii.gz"),
)
MGH = Format(read=(".mgz", ".mgh"), found=(".mgz", ".mgh"))
FORMATS = (NIFTI, MGH)
READ = tuple(sorted((end for format in FORMATS for end in format.read), key=len, reverse=True))
"""Endings of scans, ``.nii.gz`` before ``.gz``."""
FOUND = tuple(end for format in FORMATS for end in format.found)
"""Endings of files that are taken for scans where a folder is named."""
WRITTEN = tuple(end for format in FORMATS for end in format.written)
"""Endings of outputs that are one file; any other name is a derived DICOM series' folder."""


@runtime_checkable
class HasNiftiHeader(Protocol):
    """A source that knows what a NIfTI header of its voxels says."""

    header: ScanHeader


def open_source(
    path: str | Path,
    scratch: Path | None = None,
    *,
    hashed: bool = False,
    series: str | None = None,
) -> Source:
    """Open what the user named. ``scratch`` holds what must be unpacked.

    ``hashed`` says that a report will ask for its hash, which is then taken in passing.
    ``series`` names one of a DICOM folder.
    """
    if is_dicom(Path(path)):
        with needs("pydicom", "dicom"):
            from poan_runtime.images.dicom.read import open_dicom
        return open_dicom(path, series, scratch)
    if Path(path).name.lower().endswith(MGH.read):
        return MghSource(Path(path))
    return open_scan(path, scratch, hashed=hashed)


def open_sink(
    target: str | Path,
    source: Source,
    *,
    note: str,
    dtype: str | None = None,
    saturate: bool = True,
    scratch: Path | None = None,
    threads: int | None = None,
) -> Sink:
    """What writes ``target``, told by its name. ``note`` names the model in the output.

    ``dtype`` names the voxels' type, the source's if None; ``saturate`` false refuses one that
    does not hold the voxels. ``threads`` compress.
    """
    target = Path(target)
    if not target.name.endswith(NIFTI.written):
        raise PoanError(f"{target}: expected a name that ends in {' or '.join(WRITTEN)}")
    if isinstance(source, HasNiftiHeader):
        header = source.header
    else:
        header = plain_header(source.shape, source.dtype, source.affine)
    return NiftiSink(
        target,
        header,
        note=note,
        dtype=dtype,
        saturate=saturate,
        scratch=scratch,
        threads=threads,
    )
