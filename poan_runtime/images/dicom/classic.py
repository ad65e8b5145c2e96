"""A source header made the header of a classic MR image: copied, or flattened from Enhanced."""

import copy
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pydicom.valuerep import DSfloat

from poan_runtime.images.dicom.files import MR
from poan_runtime.images.dicom.frames import MACROS

STALE = (
    "AcquisitionMatrix",
    "CurrentRequestedProcedureEvidenceSequence",
    "DataSetTrailingPadding",
    "DigitalSignaturesSequence",
    "IconImageSequence",
    "InstanceCreatorUID",
    "LargestImagePixelValue",
    "LargestPixelValueInSeries",
    "LUTFrameRange",
    "MACParametersSequence",
    "ModalityLUTSequence",
    "PixelAspectRatio",
    "PixelPaddingRangeLimit",
    "PixelPaddingValue",
    "ReferencedImageBoxSequence",
    "SmallestImagePixelValue",
    "SmallestPixelValueInSeries",
    "VOILUTSequence",
)
"""What no longer holds for the finer pixels."""

KEPT_OF_ENHANCED = (
    # patient, study, series, frame of reference, equipment
    "SpecificCharacterSet StudyDate SeriesDate AcquisitionDate StudyTime SeriesTime "
    "AcquisitionTime AccessionNumber Modality Manufacturer InstitutionName InstitutionAddress "
    "ReferringPhysicianName StationName StudyDescription SeriesDescription "
    "InstitutionalDepartmentName PhysiciansOfRecord PerformingPhysicianName OperatorsName "
    "ManufacturerModelName ReferencedStudySequence ReferencedPerformedProcedureStepSequence "
    "PatientName PatientID IssuerOfPatientID PatientBirthDate PatientBirthTime PatientSex "
    "OtherPatientIDs PatientAge PatientSize PatientWeight PregnancyStatus "
    "PatientIdentityRemoved DeidentificationMethod DeidentificationMethodCodeSequence "
    "BodyPartExamined DeviceSerialNumber SoftwareVersions ProtocolName PatientPosition "
    "StudyInstanceUID SeriesInstanceUID StudyID SeriesNumber AcquisitionNumber "
    "FrameOfReferenceUID PositionReferenceIndicator RequestAttributesSequence "
    "PerformedProcedureStepStartDate PerformedProcedureStepStartTime PerformedProcedureStepID "
    "PerformedProcedureStepDescription BurnedInAnnotation LossyImageCompression "
    "LossyImageCompressionRatio LossyImageCompressionMethod ContributingEquipmentSequence "
    "MRAcquisitionType MagneticFieldStrength"
)
SAME_NAME = (
    "RepetitionTime FlipAngle InPlanePhaseEncodingDirection PercentSampling "
    "PercentPhaseFieldOfView NumberOfAverages PixelBandwidth WindowCenter WindowWidth "
    "SliceThickness ImageOrientationPatient RescaleSlope RescaleIntercept RescaleType "
    "TemporalPositionIndex"
)
MORE_MACROS = (
    *MACROS,
    "MRTimingAndRelatedParametersSequence",
    "MRAveragesSequence",
    "MRImagingModifierSequence",
    "FrameVOILUTSequence",
    "FrameAnatomySequence",
)
PULSE = {"GRADIENT": ["GR"], "SPIN": ["SE"], "BOTH": ["SE", "GR"]}


def classic_header(source: Dataset, index: int) -> Dataset:
    """The header of a classic MR image for one frame of ``source``, private elements dropped."""
    if source.get("PerFrameFunctionalGroupsSequence"):
        return _flattened(source, index)
    header = copy.deepcopy(source)
    header.remove_private_tags()
    drop_stale(header)
    return Dataset(header)


def drop_stale(header: Dataset) -> None:
    """Drop what describes the source's pixels alone: icons, overlays, curves, extremes, LUTs."""
    for name in STALE:
        if name in header:
            delattr(header, name)
    for tag in [element.tag for element in header if element.tag.group >> 8 in (0x50, 0x60)]:
        del header[tag]


def _flattened(source: Dataset, index: int) -> Dataset:
    """A frame of an Enhanced image as a classic one says it (PS3.3 C.8.3.1 and C.7)."""
    header = Dataset()
    for name in KEPT_OF_ENHANCED.split():
        if name in source:
            setattr(header, name, copy.deepcopy(source[name].value))
    header.remove_private_tags()
    groups = [source.PerFrameFunctionalGroupsSequence[index]]
    groups += [*source.get("SharedFunctionalGroupsSequence", [])]
    items = [group[name].value[0] for group in groups for name in MORE_MACROS if group.get(name)]

    def find(name: str) -> Any:
        found = (item[name].value for item in items if name in item)
        return next((value for value in found if value is not None), source.get(name))

    for name in SAME_NAME.split():
        if find(name) is not None:
            setattr(header, name, find(name))
    _sequence_facts(header, find)
    header.SOPClassUID = UID(MR)
    return header


def _sequence_facts(header: Dataset, find: Any) -> None:
    """How the pulse sequence ran, in the classic words; required ones may be empty."""
    pulse = list(PULSE.get(str(find("EchoPulseSequence")), ["RM"]))
    if find("InversionRecovery") == "YES":
        pulse.append("IR")
    if find("EchoPlanarPulseSequence") == "YES":
        pulse.append("EP")
    header.ScanningSequence = pulse
    variant = []
    if find("SegmentedKSpaceTraversal") not in (None, "SINGLE"):
        variant.append("SK")
    if find("Spoiling") not in (None, "NONE"):
        variant.append("SP")
    header.SequenceVariant = variant or "NONE"
    header.ScanOptions = None
    header.EchoTime = _first(find("EffectiveEchoTime"))
    header.EchoTrainLength = _whole(find("RFEchoTrainLength") or find("GradientEchoTrainLength"))
    if find("InversionTimes") is not None:
        header.InversionTime = _first(find("InversionTimes"))
    if find("TransmitterFrequency") is not None:
        header.ImagingFrequency = _first(find("TransmitterFrequency"))
    if find("ResonantNucleus") is not None:
        header.ImagedNucleus = find("ResonantNucleus")
    for name in ("RepetitionTime", "PositionReferenceIndicator", "MRAcquisitionType"):
        if name not in header:
            setattr(header, name, None)
    direction = header.get("InPlanePhaseEncodingDirection")
    if direction is not None:
        header.InPlanePhaseEncodingDirection = {"COLUMN": "COL"}.get(direction, direction)
    if direction == "OTHER":
        del header.InPlanePhaseEncodingDirection
    if "TemporalPositionIndex" in header:
        header.TemporalPositionIdentifier = int(header.TemporalPositionIndex)
        del header.TemporalPositionIndex


def state_echo_planar(header: Dataset) -> None:
    """Say in public words what may have stood in a private element alone: EPI."""
    pulse = header.get("ScanningSequence") or []
    pulse = [pulse] if isinstance(pulse, str) else [*pulse]
    if "EP" not in pulse:
        header.ScanningSequence = [*pulse, "EP"]


def _first(value: Any) -> Any:
    return decimal(value[0] if hasattr(value, "__getitem__") else value)


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)


def decimal(value: Any) -> Any:
    """A number that fits DICOM's sixteen characters; None stays None."""
    return None if value is None else DSfloat(float(value), auto_format=True)
