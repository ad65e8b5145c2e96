"""Which model a series gets."""

import dataclasses
import re
from collections.abc import Sequence

from pydicom.dataset import Dataset

from poan_runtime.images.dicom.frames import Frame
from poan_runtime.services.dicom_node.config import Rule


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What rules look at."""

    sender: str
    modality: str
    description: str
    protocol: str
    sequence: str
    rows: int
    columns: int


def facts_of(frame: Frame, header: Dataset, sender: str) -> Facts:
    """Of a series' first frame; ``sequence`` joins all that names the pulse sequence."""
    names = ("ScanningSequence", "SequenceVariant", "SequenceName", "PulseSequenceName")
    parts = (header.get(name) for name in (*names, "EchoPulseSequence") if header.get(name))
    words = [part if isinstance(part, str) else "\\".join(map(str, part)) for part in parts]
    return Facts(
        sender=sender,
        modality=str(header.get("Modality") or ""),
        description=frame.description,
        protocol=str(header.get("ProtocolName") or ""),
        sequence=" ".join(words),
        rows=frame.rows,
        columns=frame.columns,
    )


def first_rule(rules: Sequence[Rule], facts: Facts) -> Rule | None:
    """The first rule that fits."""
    return next((rule for rule in rules if fits(rule, facts)), None)


def fits(rule: Rule, facts: Facts) -> bool:
    """Whether all that the rule asks for is so.

    >>> rule = Rule(model="t2_x2", targets=("pacs",), description="t2.*tse", rows=(0, 400))
    >>> about = dict(sender="MR1", modality="MR", protocol="", sequence="SE", columns=320)
    >>> fits(rule, Facts(description="AX T2 TSE", rows=320, **about))
    True
    >>> fits(rule, Facts(description="AX T2 TSE", rows=512, **about))
    False
    """
    patterns = all(
        re.search(getattr(rule, name), getattr(facts, name), re.IGNORECASE)
        for name in ("description", "protocol", "sequence")
    )
    same = all(getattr(rule, name) in ("", getattr(facts, name)) for name in ("modality", "sender"))
    return (
        patterns
        and same
        and all(
            low <= extent <= high
            for limits, extent in ((rule.rows, facts.rows), (rule.columns, facts.columns))
            if limits
            for low, high in [limits]
        )
    )
