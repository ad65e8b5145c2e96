"""NIfTI-1, NIfTI-2 and Analyze headers: read, distrusted, and rewritten for the finer grid.

nibabel decodes the fields and repairs what it can. What makes the file unreadable is one
line; what is odd but harmless becomes a warning. Extensions are kept as bytes.
"""

import dataclasses
import logging
import math
import re
from pathlib import Path
from typing import Any, cast

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError
from nibabel.spm99analyze import Spm99AnalyzeHeader

from poan_runtime.errors import PoanError
from poan_runtime.geometry import Affine, Geometry, in_plane_axes, spacing, spatial_shape
from poan_runtime.images.stored import Stored

LONGEST_HEADER = 540
NO_EXTENSION = bytes(4)
LABEL_INTENT = 1002
OWN_NOTE = re.compile(rb"(?:^|; )poan \S+$")
"""How the description of a file ends that poan wrote."""
SCANNER = 1
"""Code of a qform or sform in the scanner's coordinates."""
LARGEST_LENGTH = 1e30
"""Beyond it, lengths in an affine would overflow float32 on the way out."""
OUTPUT_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScanHeader:
    """What the header says about the voxels, checked.

    ``shape`` has 2 to 7 axes. Real values are ``stored * slope + inter``. ``affine`` is the best
    one (sform, else qform, else voxel sizes). ``extension`` holds the bytes between the header
    and the voxels. ``struct`` is nibabel's header (without types), made a single-file one;
    ``analyze`` says that it was converted.
    """

    struct: Any
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    slope: float
    inter: float
    affine: Affine
    extension: bytes
    analyze: bool
    warnings: tuple[str, ...]

    @property
    def volume_shape(self) -> tuple[int, int, int]:
        """The three spatial extents; the third is 1 for a 2D image."""
        return spatial_shape(self.shape)

    @property
    def volumes(self) -> int:
        """How many 3D volumes the file holds."""
        return math.prod(self.shape[3:])

    @property
    def voxel_bytes(self) -> int:
        """Bytes of all voxels."""
        return math.prod(self.shape) * self.dtype.itemsize


def parse_header(start: bytes, path: Path, *, detached: bool) -> ScanHeader:
    """The header in the first bytes of a file; ``detached`` for the .hdr of a pair.

    ``start`` holds at least `LONGEST_HEADER` bytes, if the file has them. The bytes of an
    extension are not in it: see `with_extension`.
    """
    log = _Collector()
    struct, family = _decode(start, path, detached, log)
    shape = _shape(struct, path)
    dtype = _dtype(struct, path)
    if family == "analyze":
        log.warnings.append("Analyze header: it does not say which side is left")
        struct, offset = _nifti_from_analyze(struct), _offset(struct, path, 0)
    elif family == "pair":
        offset = _offset(struct, path, 0)
    else:
        offset = _offset(struct, path, struct.single_vox_offset)
    slope, inter = _scaling(struct, log)
    affine = _best_affine(struct, path, log)
    if int(struct["intent_code"]) == LABEL_INTENT:
        log.warnings.append("the header calls these values labels; labels cannot be interpolated")
    if OWN_NOTE.search(bytes(struct["descrip"].item())):
        log.warnings.append("poan made this file; what is super-resolved is its result")
    return ScanHeader(
        struct=struct,
        shape=shape,
        dtype=dtype,
        offset=offset,
        slope=slope,
        inter=inter,
        affine=affine,
        extension=NO_EXTENSION,
        analyze=family == "analyze",
        warnings=tuple(log.warnings),
    )


def with_extension(header: ScanHeader, extension: bytes) -> ScanHeader:
    """The header with the bytes that stood between it and the voxels."""
    return dataclasses.replace(header, extension=extension or NO_EXTENSION)


class _Collector(logging.Logger):
    """A logger that keeps nibabel's remarks as warnings in place of printing them."""

    def __init__(self) -> None:
        super().__init__("poan.header")
        self.warnings: list[str] = []

    def handle(self, record: logging.LogRecord) -> None:
        self.warnings.append(f"header: {record.getMessage()}")


def _decode(start: bytes, path: Path, detached: bool, log: _Collector) -> tuple[Any, str]:
    """nibabel's header object, and ``single``, ``pair`` or ``analyze``."""
    if not start:
        raise PoanError(f"{path}: expected a NIfTI file, got an empty one")
    size, order = _declared_size(start)
    magic = start[344:348] if size == 348 else start[4:8]
    classes: dict[tuple[int, bytes], tuple[Any, str]] = {
        (348, b"n+1\0"): (Nifti1Header, "single"),
        (348, b"ni1\0"): (Nifti1Header, "pair"),
        (540, b"n+2\0"): (Nifti2Header, "single"),
        (540, b"ni2\0"): (Nifti2Header, "pair"),
    }
    if size == 348 and detached:
        classes.setdefault((size, magic), (Spm99AnalyzeHeader, "analyze"))
    if (size, magic) not in classes:
        raise PoanError(f"{path}: expected a NIfTI file, got one that starts with {start[:8]!r}")
    kind, family = classes[size, magic]
    if len(start) < size:
        raise PoanError(f"{path}: expected a header of {size} bytes, got {len(start)}")
    if family == "pair" and not detached:
        raise PoanError(f"{path}: expected a single NIfTI file, got the header of a .hdr/.img pair")
    struct = kind(start[:size], order, check=False)
    if family == "pair":
        struct["magic"] = kind.single_magic
    try:
        with np.errstate(all="ignore"):
            struct.check_fix(logger=log, error_level=40)
    except (HeaderDataError, OverflowError, ValueError) as error:
        raise PoanError(f"{path}: unreadable header: {error}") from None
    return struct, family


def _declared_size(start: bytes) -> tuple[int, str]:
    """Header size and byte order, from the first four bytes."""
    for order, name in (("<", "little"), (">", "big")):
        size = int.from_bytes(start[:4], name)  # type: ignore[arg-type]
        if size in (348, 540):
            return size, order
    return 0, "<"


def _shape(struct: Any, path: Path) -> tuple[int, ...]:
    dims = [int(n) for n in struct["dim"]]
    if not 2 <= dims[0] <= 7:
        raise PoanError(f"{path}: expected 2 to 7 dimensions, got {dims[0]}")
    shape = tuple(dims[1 : dims[0] + 1])
    if min(shape) < 1:
        raise PoanError(f"{path}: expected at least one voxel along each axis, got shape {shape}")
    return shape


def _dtype(struct: Any, path: Path) -> np.dtype[Any]:
    dtype = struct.get_data_dtype()
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        name = "RGB" if dtype.fields else dtype.name
        raise PoanError(f"{path}: expected real or integer voxels of up to 64 bits, got {name}")
    return cast(np.dtype[Any], dtype)


def _offset(struct: Any, path: Path, least: int) -> int:
    value = float(struct["vox_offset"])
    if value == 0:
        return least
    if not math.isfinite(value) or value < least or value != int(value):
        raise PoanError(f"{path}: expected voxels from byte {least} or later, got {value:g}")
    return int(value)


def _scaling(struct: Any, log: _Collector) -> tuple[float, float]:
    """Slope and intercept; a slope of 0 or NaN means that there is no scaling."""
    slope, inter = float(struct["scl_slope"]), float(struct["scl_inter"])
    unscaled = slope == 0 or not math.isfinite(slope)
    if not math.isfinite(inter):  # nibabel refuses to read a header that says so
        if not unscaled:
            log.warnings.append(f"header: scl_inter is {inter}; taken as 0")
        struct["scl_inter"] = inter = 0.0
    if unscaled:
        struct["scl_slope"] = 0
        return 1.0, 0.0
    return slope, inter


def _best_affine(struct: Any, path: Path, log: _Collector) -> Affine:
    if int(struct["qform_code"]) > 0 and _qform(struct) is None:
        if int(struct["sform_code"]) <= 0:
            raise PoanError(f"{path}: the header's qform is not a rotation of finite numbers")
        struct["qform_code"] = 0
        log.warnings.append("header: qform is not a rotation of finite numbers; sform alone kept")
    with np.errstate(all="ignore"):
        affine = np.asarray(struct.get_best_affine(), np.float64)
    if not np.isfinite(affine).all() or np.abs(affine).max() > LARGEST_LENGTH:
        raise PoanError(f"{path}: expected a finite affine, got {affine[:3].tolist()}")
    if not np.isfinite(struct["pixdim"][1:4]).all():
        struct["pixdim"][1:4] = spacing(affine)
        log.warnings.append("header: pixdim is not finite; taken from the sform")
    return affine


def _qform(struct: Any) -> Affine | None:
    try:
        with np.errstate(all="ignore"):
            qform = np.asarray(struct.get_qform(), np.float64)
    except (ValueError, HeaderDataError):
        return None
    return qform if np.abs(qform).max() <= LARGEST_LENGTH else None


def _nifti_from_analyze(analyze: Any) -> Any:
    """A NIfTI-1 header with the same voxels; the SPM origin, where set, becomes an sform."""
    kind: Any = Nifti1Header
    struct = kind(endianness=analyze.endianness)
    for field in ("dim", "pixdim", "datatype", "bitpix", "descrip", "scl_slope"):
        struct[field] = analyze[field]
    struct["pixdim"][0] = 1
    if np.any(analyze["origin"][:3]):
        with np.errstate(all="ignore"):
            struct.set_sform(analyze.get_origin_affine(), code=2)
    return struct


def plain_header(
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    affine: Affine,
    *,
    slope: float = 1.0,
    inter: float = 0.0,
) -> ScanHeader:
    """A NIfTI-1 header in mm and s for voxels that came from elsewhere."""
    struct: Any = cast(Any, Nifti1Header)()
    struct.set_data_shape(shape)
    struct.set_data_dtype(dtype)
    struct.set_sform(affine, SCANNER)
    struct.set_qform(affine, SCANNER)
    struct.set_xyzt_units("mm", "sec")
    struct["scl_slope"], struct["scl_inter"] = slope, inter
    struct["magic"], struct["vox_offset"] = struct.single_magic, struct.single_vox_offset
    made = parse_header(struct.binaryblock, Path("array"), detached=False)
    return dataclasses.replace(made, affine=np.asarray(affine, np.float64))


def upscaled_header(
    header: ScanHeader, geometry: Geometry, stored: Stored, *, note: str, path: Path
) -> bytes:
    """Header, extension and padding of the finer volume: all bytes before its voxels.

    sform and qform are each refined and keep their code. ``note`` goes into the description if
    it fits. ``path`` names the output in errors.
    """
    struct = header.struct.copy()
    shape = geometry.fine_shape
    largest = int(np.iinfo(struct["dim"].dtype).max)
    if max(shape) > largest:
        raise PoanError(f"{path}: NIfTI-1 holds up to {largest} voxels along an axis, got {shape}")
    struct["dim"][1 : len(shape) + 1] = shape
    _refine(struct, geometry)
    if stored.dtype != header.dtype:
        struct.set_data_dtype(stored.dtype)
    if not stored.scaled:
        struct["scl_slope"], struct["scl_inter"] = 1, 0
    description = bytes(struct["descrip"].item())
    longer = description + (b"; " if description else b"") + note.encode("ascii", "replace")
    if len(longer) <= 79:
        struct["descrip"] = longer
    end = struct.sizeof_hdr + len(header.extension)
    offset = max(end + -end % 16, struct.single_vox_offset)
    struct["vox_offset"] = offset
    start = struct.binaryblock + header.extension
    return bytes(start) + bytes(offset - end)


def _refine(struct: Any, geometry: Geometry) -> None:
    """Voxel sizes, sform and qform on the finer grid.

    Refining does not turn the axes, so the qform's quaternion stays as it is.
    """
    finer, in_plane = geometry.fine_to_stored, in_plane_axes(geometry.axis)
    if int(struct["sform_code"]) > 0:
        sform = np.asarray(struct.get_sform(), np.float64) @ finer
        struct.set_sform(sform, code=int(struct["sform_code"]))
    qform = _qform(struct)
    if int(struct["qform_code"]) > 0 and qform is not None:
        origin = (qform @ finer)[:3, 3]
        struct["qoffset_x"], struct["qoffset_y"], struct["qoffset_z"] = origin
    for axis in in_plane:
        struct["pixdim"][axis + 1] *= finer[axis, axis]
        if struct["pixdim"][axis + 1] == 0:  # smaller than any number of its type
            struct["pixdim"][axis + 1] = np.finfo(struct["pixdim"].dtype).tiny
    if struct.get_dim_info()[2] in in_plane:
        for field in ("slice_start", "slice_end", "slice_code", "slice_duration"):
            struct[field] = 0


def check_dtype(name: str) -> None:
    """Refuse what is no voxel type."""
    if name not in OUTPUT_DTYPES:
        raise PoanError(f"--dtype: expected one of {', '.join(OUTPUT_DTYPES)}, got {name}")


def parse_dtype(name: str, header: ScanHeader) -> np.dtype[Any]:
    """A voxel type by name, in the byte order of the scan."""
    check_dtype(name)
    return np.dtype(name).newbyteorder(header.dtype.byteorder)
