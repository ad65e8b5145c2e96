"""A BIDS derivative: its description, and a sidecar for each result that says how it was made.

The sidecar is written after the image: an image without one was not finished.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from poan_runtime.batch.bids import DESCRIPTION, BidsScan, inherited
from poan_runtime.errors import PoanError
from poan_runtime.extras import poan_version
from poan_runtime.files import WholeFile, sha256_of

BIDS_VERSION = "1.10.0"
SOURCE = "raw"
"""Name of the raw dataset in BIDS URIs."""
OWN = "Poan"
"""The sidecar's key for what BIDS has no word for."""
WORK = "poan"
"""Folder of records, pictures and Slurm's files inside of the derivative."""
IGNORED = f"{WORK}\n*.html\n"
"""``.bidsignore``: what is no part of the standard."""
STILL_TRUE = (
    "MagneticFieldStrength",
    "Manufacturer",
    "ManufacturersModelName",
    "MRAcquisitionType",
    "PulseSequenceType",
    "ScanningSequence",
    "SequenceVariant",
    "EchoTime",
    "RepetitionTime",
    "InversionTime",
    "FlipAngle",
    "ContrastBolusIngredient",
    "BodyPart",
    "SkullStripped",
)
"""Metadata of the scan that hold of the result as well."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """What a result was made from and with; equal ones need not be made again."""

    source_sha256: str
    model: str
    model_sha256: str
    settings: dict[str, Any]


def begin_derivative(dataset: Path, out: Path) -> None:
    """Make the folder with its description, unless it is there."""
    if out.resolve() == dataset.resolve():
        raise PoanError(f"{out}: the output would lie among the raw data; name another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PoanError(f"{out}: expected a folder: {error.strerror}") from None
    _write(out / DESCRIPTION, as_text(_description(dataset, out)))
    _write(out / ".bidsignore", IGNORED)
    _write(out / "README", README)


README = """\
MR scans made finer in-plane by poan, a super-resolution network. Each image has a sidecar that
names its source, the model and their hashes. What the network added was not measured.
Not a medical device.
"""


def _description(dataset: Path, out: Path) -> dict[str, Any]:
    return {
        "Name": "Super-resolved scans",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "poan", "Version": poan_version()}],
        "DatasetLinks": {SOURCE: quote(os.path.relpath(dataset.resolve(), out.resolve()))},
    }


def sidecar(
    dataset: Path, scan: BidsScan, made: Made, *, scale: int, image_sha256: str, **own: Any
) -> dict[str, Any]:
    """The metadata of a result; ``own`` are further facts under poan's key."""
    source = f"bids:{SOURCE}:{scan.relative}"
    raw = inherited(dataset, scan)
    return {
        "Description": f"{scan.suffix} made {scale} times finer in-plane by {made.model}",
        "Sources": [source],
        "SpatialReference": source,
        "Resolution": f"in-plane voxels {scale} times finer than those of the source",
        "SkullStripped": False,
        **{key: raw[key] for key in STILL_TRUE if key in raw},
        OWN: {**dataclasses.asdict(made), "image_sha256": image_sha256, **own},
    }


def is_done(image: Path, made: Made) -> bool:
    """Whether ``image`` is there, whole, and was made from and with the same."""
    path = sidecar_of(image)
    try:
        own = json.loads(path.read_text("utf-8"))[OWN]
        as_before = all(own[key] == value for key, value in dataclasses.asdict(made).items())
        expected = own["image_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(as_before) and image.is_file() and sha256_of(image) == expected


def sidecar_of(image: Path) -> Path:
    """The JSON file beside an image."""
    return image.with_name(image.name.removesuffix(".nii.gz") + ".json")


def as_text(document: dict[str, Any]) -> str:
    """A JSON file's text."""
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    with WholeFile(path) as file:
        file.write(as_text(document).encode())


def remove_remains(target: Path) -> None:
    """Remove what a killed run left beside ``target``: files that got no name."""
    for remains in target.parent.glob(f".{target.name}.*.poan-partial"):
        remains.unlink(missing_ok=True)


def _write(path: Path, text: str) -> None:
    """Write a text file unless it says that already."""
    if not path.is_file() or path.read_text("utf-8") != text:
        with WholeFile(path) as file:
            file.write(text.encode())
