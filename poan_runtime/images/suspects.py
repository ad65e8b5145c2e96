"""What a scan seems to be, where that speaks against super-resolving it: labels, or a contrast."""

import re
from pathlib import Path

import numpy as np

from poan_runtime.geometry import spatial_shape
from poan_runtime.images.source import Source
from poan_runtime.models.find import AUTO, auto_model

LOOKED_AT = 9
FEWEST_VOXELS = 256
"""Of fewer, a few different values are no surprise."""
MOST_LABELS = 8
"""Whole numbers of fewer different values than this and one more are labels, not intensities."""
LABEL_NAME = re.compile(r"(?:^|_)(?:dseg|probseg|mask|seg|labels?|aseg|aparc\w*)(?=\.|$|_)", re.I)
CONTRAST_NAME = re.compile(
    r"(?:^|[\W_])(FLAIR|PD|T[12])(?![0-9])(?:W|w)?(?=$|[\W_])", re.IGNORECASE
)


def looks_like_labels(source: Source) -> str | None:
    """Why a scan seems to be a label map; None if it does not.

    Its name says so, or a few of its slices hold whole numbers of 2 to 8 different values.
    """
    name = "" if source.path is None else source.path.name
    if LABEL_NAME.search(name):
        return "its name says so"
    if any("labels cannot be interpolated" in warning for warning in source.warnings):
        return "its header says so"
    values, looked_at = np.empty(0, np.float32), 0
    count = spatial_shape(source.shape)[2]
    for k in sorted({int(k) for k in np.linspace(0, count - 1, LOOKED_AT)}):
        voxels = source.read_slices(2, k, k + 1)
        values, looked_at = np.union1d(values, voxels), looked_at + voxels.size
        if len(values) > MOST_LABELS or not np.equal(np.rint(values), values).all():
            return None
    if len(values) < 2 or looked_at < FEWEST_VOXELS:
        return None
    return f"it holds only the values {', '.join(f'{value:g}' for value in values)}"


def contrast_of(name: str) -> str | None:
    """The contrast that a name tells: T1, T2, PD or FLAIR as a word of it.

    >>> contrast_of("sub-1_T1w.nii.gz"), contrast_of("IXI002-Guys-0828-T2.nii"), contrast_of("ST1")
    ('T1', 'T2', None)
    """
    found = CONTRAST_NAME.findall(name)
    words = {word.upper() for word in found}
    return words.pop() if len(words) == 1 else None


def contrast_told(source: Source) -> str | None:
    """The contrast that a scan's DICOM description tells, or else its name."""
    name = source.path.name if source.path else ""
    return contrast_of(str(getattr(source, "description", ""))) or contrast_of(name)


def fitting_model(name: str | Path, source: Source) -> str | Path:
    """The model to run a scan with: the one that is named, or by ``auto`` that of its contrast."""
    return auto_model(str(name), contrast_told(source)) if name in AUTO else name


def other_contrast(source: Source, trained_on: str) -> str | None:
    """A warning where the scan's name or DICOM description tells another contrast than the model's.

    A network of another contrast costs up to 1.1 dB. One trained on several, ``MR``, fits all.
    """
    told = getattr(source, "description", "") or (source.path.name if source.path else "")
    found = contrast_of(str(told))
    if found is None or trained_on not in ("T1", "T2", "PD", "FLAIR"):
        return None
    if found == trained_on or {found, trained_on} <= {"T2", "PD", "FLAIR"}:
        return None
    return (
        f"looks like {found} by its name, the model was trained on {trained_on}: up to 1.1 dB less"
    )
