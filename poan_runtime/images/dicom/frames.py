"""What a stack must know of each 2D frame, from classic and from Enhanced multi-frame files."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset

from poan_runtime.errors import PoanError
from poan_runtime.images.dicom.files import reading
from poan_runtime.images.dicom.provenance import made_by_poan

LARGEST_SIDE = 1 << 12
MOST_FRAMES = 1 << 16
FARTHEST_MM = 1e5
PHILIPS_EPI_FACTOR = (0x2001, 0x1013)

MACROS = (
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
    "FrameContentSequence",
    "MRImageFrameTypeSequence",
    "MREchoSequence",
    "MRFOVGeometrySequence",
    "MRModifierSequence",
    "MRDiffusionSequence",
    "TemporalPositionSequence",
    "UnassignedPerFrameConvertedAttributesSequence",
    "UnassignedSharedConvertedAttributesSequence",
)

Vector = tuple[float, ...]
Find = Callable[[str], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
    """One 2D frame. Directions and positions are DICOM's LPS+ mm.

    ``index`` counts from 0 within the file. ``spacing`` is (between rows, between columns) in mm,
    ``step`` the stated distance of slices or None. ``kind`` tells apart what one series mixes:
    component, frame type, echo, inversion and contrast. ``order`` sorts frames of one place by
    time. ``native`` is the (rows, columns) that were acquired, over the whole field of view.
    ``by_poan``: it is a result of poan's own.
    """

    path: Path
    index: int
    instance_uid: str
    class_uid: str
    study_uid: str
    series_uid: str
    series_number: int
    description: str
    rows: int
    columns: int
    signed: bool
    bits: int
    inverted: bool
    by_poan: bool
    slope: float
    inter: float
    position: Vector | None
    orientation: Vector | None
    spacing: Vector | None
    step: float | None
    kind: tuple[Any, ...]
    component: str
    localizer: bool
    order: tuple[float, ...]
    native: tuple[int, int] | None
    enhanced: bool
    volumetric: bool
    echo_planar: bool


def frames_of(header: FileDataset, path: Path) -> list[Frame]:
    """Every frame of a file; PoanError on a file that contradicts itself."""
    with reading(path):
        shared = _file_facts(header, path)
        count = int(header.get("NumberOfFrames") or 1)
        if not 1 <= count <= MOST_FRAMES:
            raise PoanError(f"{path}: expected 1 to {MOST_FRAMES} frames, got {count}")
        groups = header.get("PerFrameFunctionalGroupsSequence")
        if not groups:
            if "MOSAIC" in _list(header.get("ImageType")):
                raise PoanError(
                    f"{path}: a mosaic of many slices in one image; convert it with dcm2niix and "
                    "name the NIfTI file"
                )
            if count > 1:
                raise PoanError(f"{path}: {count} frames, and the position of none of them")
            return [_frame(header, [header], 0, shared)]
        if len(groups) != count:
            raise PoanError(f"{path}: {count} frames, and {len(groups)} descriptions of frames")
        common = [i for g in header.get("SharedFunctionalGroupsSequence") or () for i in _items(g)]
        return [_frame(header, [*_items(g), *common], i, shared) for i, g in enumerate(groups)]


def _file_facts(header: FileDataset, path: Path) -> dict[str, Any]:
    rows, columns = int(header.get("Rows") or 0), int(header.get("Columns") or 0)
    if not (1 <= rows <= LARGEST_SIDE and 1 <= columns <= LARGEST_SIDE):
        raise PoanError(
            f"{path}: expected 1 to {LARGEST_SIDE} rows and columns, got {rows} and {columns}"
        )
    if int(header.get("SamplesPerPixel") or 1) != 1:
        raise PoanError(f"{path}: expected one sample a pixel, got a colour image")
    bits, stored = int(header.get("BitsAllocated") or 0), int(header.get("BitsStored") or 0)
    if bits not in (8, 16) or not 1 <= stored <= bits:
        raise PoanError(f"{path}: expected 8 or 16 bits a pixel, got {stored} of {bits}")
    uids = ("SOPInstanceUID", "SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID")
    instance, kind, study, series = (str(header.get(name) or "") for name in uids)
    if not instance or not series:
        raise PoanError(f"{path}: says neither which image nor which series it is")
    return {
        "path": path,
        "instance_uid": instance,
        "class_uid": kind,
        "study_uid": study,
        "series_uid": series,
        "series_number": int(header.get("SeriesNumber") or 0),
        "description": str(header.get("SeriesDescription") or ""),
        "rows": rows,
        "columns": columns,
        "signed": int(header.get("PixelRepresentation") or 0) == 1,
        "bits": stored,
        "inverted": header.get("PhotometricInterpretation") == "MONOCHROME1",
        "by_poan": made_by_poan(header),
    }


def _frame(header: Dataset, places: Sequence[Dataset], index: int, file: dict[str, Any]) -> Frame:
    def find(name: str) -> Any:
        return next((item[name].value for item in places if name in item), None)

    def value(name: str) -> Any:
        return header.get(name) if find(name) is None else find(name)

    kind_of = [str(part) for part in _list(value("FrameType") or header.get("ImageType"))]
    component = _component(value("ComplexImageComponent"), kind_of)
    step = _floats([value("SpacingBetweenSlices") or value("SliceThickness")], 1)
    echo = find("EffectiveEchoTime") if find("EffectiveEchoTime") is not None else find("EchoTime")
    return Frame(
        **file,
        index=index,
        slope=_number(find("RescaleSlope"), 1.0) or 1.0,
        inter=_number(find("RescaleIntercept"), 0.0),
        position=_floats(find("ImagePositionPatient"), 3),
        orientation=_floats(find("ImageOrientationPatient"), 6),
        spacing=_floats(find("PixelSpacing"), 2),
        step=step[0] if step and step[0] > 0 else None,
        kind=(component, *kind_of[2:], _number(echo, 0.0), *_inversion(find)),
        component=component,
        localizer="LOCALIZER" in kind_of,
        order=(
            _number(find("TemporalPositionIndex") or find("TemporalPositionIdentifier"), 0.0),
            _number(find("DiffusionBValue"), 0.0),
            _number(header.get("AcquisitionNumber"), 0.0),
            _number(header.get("InstanceNumber"), 0.0),
            float(index),
        ),
        native=native_matrix(find, value),
        enhanced=not any(place is header for place in places),
        volumetric=value("MRAcquisitionType") == "3D",
        echo_planar=_echo_planar(header, value),
    )


def _echo_planar(header: Dataset, value: Find) -> bool:
    """Whether lines were read as EPI does: stated, or by Philips' private EPI factor."""
    factor = header.get(PHILIPS_EPI_FACTOR)
    stated = value("EchoPlanarPulseSequence") == "YES" or "EP" in _list(value("ScanningSequence"))
    return stated or (factor is not None and _number(factor.value, 1.0) > 1)


def _inversion(find: Find) -> tuple[float, ...]:
    times = _list(find("InversionTimes") or find("InversionTime"))
    return tuple(_number(time, 0.0) for time in times)


def _items(group: Dataset) -> list[Dataset]:
    """A functional group as the items of its macros."""
    return [group[name].value[0] for name in MACROS if group.get(name)]


def native_matrix(find: Find, value: Find) -> tuple[int, int] | None:
    """(rows, columns) that were acquired, counted over the whole field of view.

    AcquisitionMatrix is (frequency along rows, along columns, phase along rows, along columns) as
    the vendors fill it: 0, 256, 192, 0 goes with phase encoding ROW, 64, 0, 0, 64 with COL. What
    runs along a row counts columns. A rectangular field of view has fewer phase lines for its
    narrower side, and PercentSampling bounds the phase resolution: the phase count is the smaller
    of lines / PercentPhaseFieldOfView and frequency * PercentSampling.
    """
    matrix = [int(n) for n in _list(find("AcquisitionMatrix"))]
    if len(matrix) == 4:
        frequency, phase = max(matrix[:2]), max(matrix[2:])
        phase_in_rows = matrix[3] > 0
    else:
        frequency = int(_number(value("MRAcquisitionFrequencyEncodingSteps"), 0))
        phase = int(_number(value("MRAcquisitionPhaseEncodingStepsInPlane"), 0))
        phase_in_rows = value("InPlanePhaseEncodingDirection") != "ROW"
    if not (0 < frequency <= LARGEST_SIDE and 0 < phase <= LARGEST_SIDE):
        return None
    field = _number(value("PercentPhaseFieldOfView"), 100.0)
    sampled = _number(value("PercentSampling"), 100.0)
    lines = phase / (field / 100) if 0 < field <= 100 else phase
    if 0 < sampled <= 100:
        lines = min(lines, frequency * sampled / 100)
    return (round(lines), frequency) if phase_in_rows else (frequency, round(lines))


def _component(stated: Any, kind_of: Sequence[str]) -> str:
    """magnitude, phase, real, imaginary or map."""
    words = {part.upper() for part in kind_of[2:]}
    if stated in ("PHASE", "REAL", "IMAGINARY"):
        return str(stated).lower()
    for name, marks in (
        ("phase", {"P", "PHASE", "PHASE MAP"}),
        ("real", {"R", "REAL"}),
        ("imaginary", {"I", "IMAGINARY"}),
    ):
        if words & marks:
            return name
    return "map" if any("MAP" in word.split("_") for word in words) else "magnitude"


def _list(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        return [value]
    return [*value]


def _floats(value: Any, count: int) -> Vector | None:
    """``count`` finite numbers of a believable size, or None."""
    try:
        numbers = tuple(float(part) for part in _list(value))
    except (TypeError, ValueError):
        return None
    believable = len(numbers) == count and np.isfinite(numbers).all()
    return numbers if believable and max(map(abs, numbers)) < FARTHEST_MM else None


def _number(value: Any, otherwise: float) -> float:
    parts = _list(value)
    if not parts:
        return otherwise
    try:
        number = float(parts[0])
    except (TypeError, ValueError):
        return otherwise
    return number if np.isfinite(number) else otherwise
