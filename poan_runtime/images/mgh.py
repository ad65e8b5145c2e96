"""FreeSurfer's .mgh and .mgz as a `Source`: read whole by nibabel."""

import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError

from poan_runtime.errors import PoanError
from poan_runtime.files import sha256_of
from poan_runtime.images.nifti.header import ScanHeader, plain_header
from poan_runtime.images.source import ArraySource

DAMAGE: tuple[type[Exception], ...] = (nibabel.filebasedimages.ImageFileError, HeaderDataError)
DAMAGE += (zlib.error, EOFError, OSError, ValueError, TypeError, KeyError)
"""What nibabel raises on a file that is no such volume, or a damaged one."""


class MghSource(ArraySource):
    """A FreeSurfer volume in memory."""

    def __init__(self, path: Path) -> None:
        image = _load(path)
        super().__init__(*image)
        self.path = path
        self.dtype = image[0].dtype.newbyteorder("=")

    @property
    def header(self) -> ScanHeader:
        """What a NIfTI file of the same voxels says."""
        return plain_header(self.shape, self.dtype, self.affine)

    def sha256(self) -> dict[str, str]:
        """See `Source.sha256`."""
        assert self.path is not None
        return {self.path.name: sha256_of(self.path)}


def _load(path: Path) -> tuple[Any, Any]:
    """Voxels and affine."""
    if not path.exists():
        raise PoanError(f"{path}: no such file")
    try:
        with np.errstate(all="ignore"):
            image: Any = nibabel.load(path)
            voxels, affine = np.asarray(image.dataobj), np.asarray(image.affine, np.float64)
    except DAMAGE as error:
        if isinstance(error, OSError) and error.strerror:
            raise PoanError(f"{path}: cannot be read: {error.strerror}") from None
        raise PoanError(f"{path}: not a FreeSurfer volume, or a damaged one: {error}") from None
    if not np.isfinite(affine).all():
        raise PoanError(f"{path}: expected a finite affine, got {affine[:3].tolist()}")
    return voxels, affine
