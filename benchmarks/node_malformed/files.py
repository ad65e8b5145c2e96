"""Data sets that no scanner should send: with one fault each, and broken at random."""

import dataclasses
import io
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
)

from tests.runtime.images.dicom.fuzz import broken
from tests.runtime.images.dicom.made import ROOT, image

PLACE = "10000000"
"""Stands at the end of both UIDs of a base; each file gets its number there."""
SYNTAXES = [
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    JPEG2000Lossless,
    JPEGLSLossless,
]
SIDE = 32
"""JPEG 2000 takes no less."""
MISSING = """
    SOPClassUID SOPInstanceUID SeriesInstanceUID StudyInstanceUID Rows Columns BitsAllocated
    BitsStored PixelRepresentation PhotometricInterpretation ImagePositionPatient
    ImageOrientationPatient PixelSpacing PixelData Modality InstanceNumber
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sent:
    """A data set as bytes, and what its request says it is."""

    name: str
    content: bytes
    syntax: UID = ExplicitVRLittleEndian
    kind: UID = MRImageStorage
    instance: str = ""

    def numbered(self, n: int) -> "Sent":
        """The same with UIDs of its own."""
        number = str(int(PLACE) + n)
        content = self.content.replace(PLACE.encode(), number.encode())
        return dataclasses.replace(self, content=content, instance=f"{ROOT}3.{number}")


def base() -> Dataset:
    """A good image."""
    plane = np.random.default_rng(5).integers(1, 1000, (SIDE, SIDE))
    ds = image(1, (0.0, 0.0, 0.0), plane)
    ds.SOPInstanceUID, ds.SeriesInstanceUID = f"{ROOT}3.{PLACE}", f"{ROOT}2.{PLACE}"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def content(ds: Dataset, syntax: UID = ExplicitVRLittleEndian) -> bytes:
    """The data set as it goes over the wire."""
    if syntax.is_compressed and not ds.file_meta.TransferSyntaxUID.is_compressed:
        ds.compress(syntax)
    out = pydicom.filebase.DicomBytesIO()
    out.is_little_endian, out.is_implicit_VR = True, syntax.is_implicit_VR
    pydicom.filewriter.write_dataset(out, ds)
    return out.getvalue()


def named() -> list[Sent]:
    """One fault each."""
    whole = content(base())
    found = [Sent(name="good", content=whole)]
    for share in (0.02, 0.2, 0.5, 0.9):
        cut = whole[: int(share * len(whole))]
        found.append(Sent(name=f"cut off at {share:.0%}", content=cut))
    for name in ("Rows", "SeriesInstanceUID", "PixelData"):
        found.append(Sent(name=f"length of {name} is 4 GB", content=_lengthened(whole, name)))
    for name in MISSING.split():
        ds = base()
        delattr(ds, name)
        found.append(Sent(name=f"no {name}", content=content(ds)))
    for name, value in (("Rows", 4000), ("Rows", 60000), ("Rows", 0), ("Columns", 3)):
        ds = base()
        setattr(ds, name, value)
        found.append(Sent(name=f"{name} is {value}", content=content(ds)))
    return [*found, *_bombs(), *_other_kinds()]


def _lengthened(whole: bytes, name: str) -> bytes:
    """The length field of an element, made huge."""
    tag = int(pydicom.datadict.tag_for_keyword(name) or 0)
    at = whole.index((tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little"))
    long_form = whole[at + 4 : at + 6] == b"OW"
    at, size = (at + 8, 4) if long_form else (at + 6, 2)
    return whole[:at] + b"\xf0" + b"\xff" * (size - 1) + whole[at + size :]


def _bombs() -> list[Sent]:
    """Few bytes that say that they are many."""
    ds = base()
    j2k = content(ds, JPEG2000Lossless)
    at = j2k.index(b"\xff\x4f\xff\x51") + 8  # the size in the codestream, right and bottom
    huge = j2k[:at] + (60000).to_bytes(4) * 2 + j2k[at + 8 :]
    frames = base()
    frames.NumberOfFrames = 2_000_000_000
    ds = base()
    ds.Rows = ds.Columns = 4096
    ds.PixelData = bytes(2 << 24)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    deflated = packer.compress(bytes(1 << 28)) + packer.flush()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("bomb.dcm", bytes(1 << 28))
    return [
        Sent(name="J2K of 60000x60000", content=huge, syntax=JPEG2000Lossless),
        Sent(name="2,000,000,000 frames", content=content(frames)),
        Sent(
            name="black 4096x4096 in J2K",
            content=content(ds, JPEG2000Lossless),
            syntax=JPEG2000Lossless,
        ),
        Sent(name="256 MiB deflated, sent as plain", content=deflated),
        Sent(name="a zip of a bomb", content=archive.getvalue()),
    ]


def _other_kinds() -> list[Sent]:
    pdf = base()
    pdf.SOPClassUID = EncapsulatedPDFStorage
    pdf.EncapsulatedDocument = b"%PDF-1.7 " + bytes(999)
    directory = base()
    directory.SOPClassUID = UID("1.2.840.10008.1.3.10")
    return [
        Sent(name="a PDF sent as an MR image", content=content(pdf)),
        Sent(name="a DICOMDIR sent as an MR image", content=content(directory)),
        Sent(name="text", content=b"not DICOM at all " * 50),
        Sent(name="nothing", content=b""),
    ]


def fuzzed(count: int, folder: Path | None) -> Iterator[Sent]:
    """``count`` data sets broken at seeded places; half of them in their first 1.5 KB."""
    bases = [Sent(name=s.name, content=content(base(), s), syntax=s) for s in SYNTAXES]
    bases += [] if folder is None else [*_real(folder)]
    for seed in range(count):
        one = bases[seed % len(bases)].numbered(seed)
        spoilt = broken(bytes(132) + one.content, seed)[132:]
        yield dataclasses.replace(one, name=f"seed {seed}", content=spoilt)


def _real(folder: Path) -> Iterator[Sent]:
    """Real images below 200 KB, renamed to UIDs of a base."""
    seen = set()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.stat().st_size < 200_000 and path.parent not in seen:
            ds = pydicom.dcmread(path, force=True)
            if "SOPClassUID" not in ds or "PixelData" not in ds:
                continue
            seen.add(path.parent)
            ds.SOPInstanceUID, ds.SeriesInstanceUID = f"{ROOT}3.{PLACE}", f"{ROOT}2.{PLACE}"
            syntax = ds.file_meta.TransferSyntaxUID
            yield Sent(
                name=path.parent.name,
                content=content(ds, syntax),
                syntax=syntax,
                kind=ds.SOPClassUID,
            )
