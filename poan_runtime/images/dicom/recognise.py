"""Whether something is DICOM, told without pydicom."""

import os
from pathlib import Path

MAGIC_AT = 128
MOST_LOOKS = 200
"""A folder counts as DICOM if one of this many files, the first by name, is DICOM."""


def is_dicom(path: Path) -> bool:
    """Whether ``path`` is a DICOM file or a folder with one in it."""
    if os.path.isdir(path):  # false also for a name that no file system takes
        files = (file for file in sorted(path.rglob("*")) if file.is_file())
        return any(has_magic(file) for _, file in zip(range(MOST_LOOKS), files, strict=False))
    return os.path.isfile(path) and has_magic(path)


def has_magic(path: Path) -> bool:
    """Whether the file starts as DICOM does: 128 bytes, then ``DICM``."""
    try:
        with path.open("rb") as file:
            return file.read(MAGIC_AT + 4)[MAGIC_AT:] == b"DICM"
    except OSError:
        return False
