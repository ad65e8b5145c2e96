"""A DICOM stack's header as NIfTI holds it, so that both ways out share one path."""

from pathlib import Path

import numpy as np
from nibabel.nifti1 import Nifti1Header

from poan_runtime.geometry import Affine
from poan_runtime.images.nifti.header import ScanHeader, parse_header

SCANNER = 1


def nifti_header(
    shape: tuple[int, ...], dtype: np.dtype[np.generic], affine: Affine, scale: tuple[float, float]
) -> ScanHeader:
    """A NIfTI-1 header in mm and s; ``scale`` is (slope, intercept)."""
    header = Nifti1Header()  # type: ignore[no-untyped-call]
    header.set_data_shape(shape)  # type: ignore[no-untyped-call]
    header.set_data_dtype(dtype)  # type: ignore[no-untyped-call]
    header.set_sform(affine, SCANNER)  # type: ignore[no-untyped-call]
    header.set_qform(affine, SCANNER)  # type: ignore[no-untyped-call]
    header.set_xyzt_units("mm", "sec")  # type: ignore[no-untyped-call]
    header["scl_slope"], header["scl_inter"] = scale
    header["magic"], header["vox_offset"] = b"n+1", 352
    return parse_header(header.binaryblock, Path("DICOM"), detached=False)
