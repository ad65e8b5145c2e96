"""Small conforming DICOM series, made; and the programs that judge them."""

import collections
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

ROOT = "1.2.826.0.1.3680043.10.9999."
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
MakeSeries = Callable[..., Path]


def image(number: int, position: tuple[float, float, float], plane: NDArray[Any]) -> Dataset:
    """A conforming MR image of a made head."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "OTHER"]
    ds.SOPClassUID = pydicom.uid.MRImageStorage
    ds.SOPInstanceUID = f"{ROOT}3.{number}"
    ds.StudyDate = ds.SeriesDate = ds.ContentDate = "20200101"
    ds.StudyTime = ds.SeriesTime = ds.ContentTime = "120000"
    ds.AccessionNumber = ds.ReferringPhysicianName = ds.StudyID = ""
    ds.Modality, ds.Manufacturer = "MR", "Made"
    ds.SeriesDescription = "T2 axial"
    ds.PatientName, ds.PatientID = "Secret^Name", "SECRETID"
    ds.PatientBirthDate, ds.PatientSex, ds.PatientPosition = "19700101", "O", "HFS"
    ds.BodyPartExamined = "HEAD"
    ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions = "SE", "NONE", None
    ds.MRAcquisitionType, ds.RepetitionTime, ds.EchoTime = "2D", "3000", "90"
    ds.EchoTrainLength, ds.SliceThickness, ds.SpacingBetweenSlices = 1, "4", "4"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = ROOT + "1", ROOT + "2"
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = ROOT + "4", ""
    ds.SeriesNumber, ds.AcquisitionNumber, ds.InstanceNumber = 7, 1, number
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [*map(str, position)], [*map(str, AXIAL)]
    ds.PixelSpacing, ds.SamplesPerPixel = ["1.5", "1.5"], 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns = plane.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.WindowCenter, ds.WindowWidth = "500", "1000"
    ds.PixelData = plane.astype("<u2").tobytes()
    ds["PixelData"].VR = "OW"
    return ds


def write(ds: Dataset, path: Path, syntax: str = ExplicitVRLittleEndian) -> Path:
    """Write it as a file of that transfer syntax."""
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def program(name: str) -> str:
    """The path of a program; skips where it is not installed."""
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip(f"needs {name}")
    return found


def faults(files: list[Path]) -> set[str]:
    """What dciodvfy calls an error in any of the files, without item numbers."""
    found: collections.Counter[str] = collections.Counter()
    for file in files:
        run = subprocess.run([program("dciodvfy"), "-new", str(file)], capture_output=True)
        for line in run.stderr.decode(errors="replace").splitlines():
            if line.startswith("Error"):
                found[re.sub(r"\[\d+\]", "", line)] += 1
    return set(found)


def converted(folder: Path, out: Path, *options: str) -> list[Path]:
    """What dcm2niix makes of a folder, uncompressed, sorted by name."""
    out.mkdir()
    line = [program("dcm2niix"), "-b", "n", "-z", "n", "-f", "%s", *options, "-o", str(out)]
    subprocess.run([*line, str(folder)], capture_output=True, check=False)
    return sorted(out.glob("*.nii"))
