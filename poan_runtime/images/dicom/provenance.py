"""What a derived image says of how it was made: for people, for machines, and in its UIDs."""

import dataclasses
import datetime

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, generate_uid

NOTICE = "AI-PROCESSED, NOT FOR DIAGNOSIS"
UUID_ROOT = "2.25."
MANUFACTURER = "poan"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """Who made it: program and model; ``settings`` is whatever else decides the voxels."""

    version: str
    model: str
    model_sha256: str
    scale: int
    settings: str = ""
    faithfulness: str | None = None

    def sentence(self) -> str:
        """What was done, at most 1024 characters (ST)."""
        faithful = f"; {self.faithfulness}" if self.faithfulness else ""
        return (
            f"In-plane super-resolution x{self.scale} by poan {self.version}, model {self.model}, "
            f"SHA-256 {self.model_sha256}{faithful}. {NOTICE}."
        )[:1024]

    def equipment(self, made: datetime.datetime) -> Dataset:
        """An item of the Contributing Equipment Sequence (DICOM PS3.3 C.12.1)."""
        item = Dataset()
        item.PurposeOfReferenceCodeSequence = code("109102", "Processing Equipment")
        item.Manufacturer = MANUFACTURER
        item.ManufacturerModelName = self.model[:64]
        # the hash, of 64 characters, not last: a space that makes the length even would be its 65th
        item.SoftwareVersions = [self.model_sha256[:64], self.version[:63]]
        item.ContributionDateTime = made.strftime("%Y%m%d%H%M%S")
        item.ContributionDescription = self.sentence()
        return item


@dataclasses.dataclass(frozen=True, kw_only=True)
class Identity:
    """Where new UIDs come from: chance, or ``root`` and ``seed``, and then they repeat."""

    root: str | None = None
    seed: str | None = None

    def uid(self, made: Provenance, *source: str) -> UID:
        """A UID for what follows from ``source`` by this model and these settings."""
        root = self.root.rstrip(".") + "." if self.root else None
        if self.root is None and self.seed is None:
            return generate_uid(prefix=None)
        facts = [self.seed or "", made.model_sha256, str(made.scale), made.settings, *source]
        return generate_uid(prefix=root or UUID_ROOT, entropy_srcs=["\0".join(facts)])


def code(value: str, meaning: str) -> Sequence:
    """A code sequence of one item of DICOM's own scheme.

    >>> code("113085", "Spatial resampling")[0].CodingSchemeDesignator
    'DCM'
    """
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return Sequence([item])


def source_image(class_uid: str, instance_uid: str, frame: int | None) -> Dataset:
    """An item of the Source Image Sequence; ``frame`` counts from 1 in a multi-frame source."""
    item = Dataset()
    item.ReferencedSOPClassUID = UID(class_uid)
    item.ReferencedSOPInstanceUID = UID(instance_uid)
    if frame is not None:
        item.ReferencedFrameNumber = frame
    item.PurposeOfReferenceCodeSequence = code(
        "121322", "Source image for image processing operation"
    )
    return item


def made_by_poan(header: Dataset) -> bool:
    """Whether the image is one of ours: poan is among the equipment that contributed to it."""
    equipment = header.get("ContributingEquipmentSequence") or ()
    return any(getattr(item, "Manufacturer", "") == MANUFACTURER for item in equipment)
