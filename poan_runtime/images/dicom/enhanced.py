"""A derived Enhanced MR image: the source's functional groups with what changed rewritten."""

import copy
from collections.abc import Sequence
from typing import Any

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID

from poan_runtime.errors import PoanError
from poan_runtime.images.dicom.classic import decimal, drop_stale
from poan_runtime.images.dicom.files import ENHANCED_MR
from poan_runtime.images.dicom.frames import Frame
from poan_runtime.images.dicom.provenance import Provenance, code, source_image
from poan_runtime.images.dicom.stack import Stack

CONCATENATION = (
    "ConcatenationUID",
    "ConcatenationFrameOffsetNumber",
    "InConcatenationNumber",
    "InConcatenationTotalNumber",
    "SOPInstanceUIDOfConcatenationSource",
)
OF_AN_ORIGINAL = (
    "PulseSequenceName MRAcquisitionType EchoPulseSequence MultipleSpinEcho "
    "MultiPlanarExcitation PhaseContrast TimeOfFlightContrast ArterialSpinLabelingContrast "
    "SteadyStatePulseSequence EchoPlanarPulseSequence SaturationRecovery "
    "SpectrallySelectedSuppression OversamplingPhase GeometryOfKSpaceTraversal "
    "RectilinearPhaseEncodeReordering SegmentedKSpaceTraversal CoverageOfKSpace "
    "NumberOfKSpaceTrajectories BulkMotionCompensationTechnique CardiacSynchronizationTechnique "
    "RespiratoryMotionCompensationTechnique"
)
"""How the source was acquired: the modules of PS3.3 C.8.13.4 and C.7.6.18 want it in originals and
mixtures alone, and dciodvfy calls it an error in a derived image."""
FLAVOURS_AT, CONTRAST_AT = 2, 3


def check_enhanced(stack: Stack, across: int) -> None:
    """Raise PoanError unless the stack is one Enhanced file whose slices stay as they are.

    ``across`` is the stack axis across which slices run; 2 is that of its frames.
    """
    frames = [frame for volume in stack.frames for frame in volume]
    if {UID(frame.class_uid) for frame in frames} != {ENHANCED_MR}:
        raise PoanError("--enhanced: expected Enhanced MR input; leave it out for a classic series")
    if len({frame.path for frame in frames}) > 1:
        raise PoanError(
            "--enhanced: the series lies in several files, and one is written from one; leave it "
            "out for a classic series"
        )
    if across != 2:
        raise PoanError("--enhanced: slices are cut across another axis than the source's frames")


def enhanced_header(
    source: Dataset, frames: Sequence[Frame], places: Sequence[Dataset], made: Provenance
) -> Dataset:
    """The header of the whole image, without identity and pixels.

    ``places`` holds for each frame ImagePositionPatient, ImageOrientationPatient, PixelSpacing,
    and SpacingBetweenSlices where there are several slices.
    """
    header = copy.deepcopy(source)
    header.remove_private_tags()
    drop_stale(header)
    for name in (*CONCATENATION, *OF_AN_ORIGINAL.split()):
        if name in header:
            delattr(header, name)
    header = Dataset(header)
    header.SOPClassUID = UID(ENHANCED_MR)
    header.NumberOfFrames = len(frames)
    header.ImageType = _derived(header.get("ImageType"))
    groups = header.PerFrameFunctionalGroupsSequence
    header.PerFrameFunctionalGroupsSequence = Items(
        [copy.deepcopy(groups[frame.index]) for frame in frames]
    )
    shared = header.get("SharedFunctionalGroupsSequence") or [Dataset()]
    for group in [*header.PerFrameFunctionalGroupsSequence, *shared]:
        _retype(group)
    for group, frame, place in zip(
        header.PerFrameFunctionalGroupsSequence, frames, places, strict=True
    ):
        _put(group, shared[0], place)
        group.DerivationImageSequence = _derivation(frame, made)
    header.SourceImageEvidenceSequence = _evidence(frames[0])
    return header


def rescale(header: Dataset, slope: float, inter: float) -> None:
    """Give every frame slope and intercept, wherever the source keeps them."""
    shared = header.get("SharedFunctionalGroupsSequence") or []
    groups = [*shared, *header.PerFrameFunctionalGroupsSequence]
    for group in groups:
        for item in group.get("PixelValueTransformationSequence") or []:
            item.RescaleSlope, item.RescaleIntercept = decimal(slope), decimal(inter)


def mappings(header: Dataset) -> list[Dataset]:
    """Every real-world value mapping of the image."""
    shared = header.get("SharedFunctionalGroupsSequence") or []
    groups = [header, *shared, *header.PerFrameFunctionalGroupsSequence]
    return [item for group in groups for item in group.get("RealWorldValueMappingSequence") or []]


def _derived(kind: Any) -> list[str]:
    """An image or frame type as a derived one says it (PS3.3 C.8.16.1).

    >>> _derived(["ORIGINAL", "PRIMARY", "T1", "NONE"])
    ['DERIVED', 'PRIMARY', 'T1', 'RESAMPLED']
    """
    parts = [*kind] if kind else []
    flavour = parts[FLAVOURS_AT] if len(parts) > FLAVOURS_AT else "OTHER"
    mixed = len(parts) > CONTRAST_AT and parts[CONTRAST_AT] == "MIXED"
    return ["DERIVED", "PRIMARY", flavour, "MIXED" if mixed else "RESAMPLED"]


def _retype(group: Dataset) -> None:
    for item in group.get("MRImageFrameTypeSequence") or []:
        item.FrameType = _derived(item.get("FrameType"))


def _put(group: Dataset, shared: Dataset, place: Dataset) -> None:
    """Position, orientation and spacing of a frame, in its own groups or the shared ones."""
    _item(group, shared, "PlanePositionSequence").ImagePositionPatient = place.ImagePositionPatient
    orientation = _item(group, shared, "PlaneOrientationSequence")
    orientation.ImageOrientationPatient = place.ImageOrientationPatient
    measures = _item(group, shared, "PixelMeasuresSequence")
    measures.PixelSpacing = place.PixelSpacing
    if "SpacingBetweenSlices" in place:
        measures.SpacingBetweenSlices = place.SpacingBetweenSlices


def _item(group: Dataset, shared: Dataset, name: str) -> Dataset:
    """A macro's item where the source keeps it; made in the frame's groups if it is nowhere."""
    for place in (group, shared):
        if place.get(name):
            item: Dataset = place[name].value[0]
            return item
    setattr(group, name, Items([Dataset()]))
    return _item(group, shared, name)


def _derivation(frame: Frame, made: Provenance) -> Items:
    item = Dataset()
    item.DerivationDescription = made.sentence()
    item.DerivationCodeSequence = code("113085", "Spatial resampling")
    reference = source_image(frame.class_uid, frame.instance_uid, frame.index + 1)
    item.SourceImageSequence = Items([reference])
    return Items([item])


def _evidence(frame: Frame) -> Items:
    """The study, series and instance that frames were derived from (PS3.3 C.8.13.2)."""
    instance, series, study = Dataset(), Dataset(), Dataset()
    instance.ReferencedSOPClassUID = UID(frame.class_uid)
    instance.ReferencedSOPInstanceUID = UID(frame.instance_uid)
    series.SeriesInstanceUID = UID(frame.series_uid)
    series.ReferencedSOPSequence = Items([instance])
    study.StudyInstanceUID = UID(frame.study_uid)
    study.ReferencedSeriesSequence = Items([series])
    return Items([study])
