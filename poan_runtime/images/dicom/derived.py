"""A derived DICOM series as a `Sink`: fine slices wait in a file, then the folder appears whole.

Everything that an instance must say of itself is known only when the last slice is done (the
figure of faithfulness), so instances are written at the end, one at a time.
"""

import contextlib
import dataclasses
import datetime
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian

from poan_runtime.errors import PoanError
from poan_runtime.files import sync_folder, temporary_file, writing
from poan_runtime.geometry import Geometry
from poan_runtime.images.dicom.burn_in import burn
from poan_runtime.images.dicom.classic import classic_header, decimal, state_echo_planar
from poan_runtime.images.dicom.enhanced import (
    check_enhanced,
    enhanced_header,
    mappings,
    rescale,
)
from poan_runtime.images.dicom.files import MR, read_header, reading
from poan_runtime.images.dicom.frames import Frame
from poan_runtime.images.dicom.provenance import NOTICE, Identity, Provenance, code, source_image
from poan_runtime.images.dicom.read import DicomSource
from poan_runtime.images.stored import to_stored

SERIES_NUMBER_OFFSET = 1000
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
LOSSY = {"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.81"}
LOSSY |= {"1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.203"}


class DerivedSeries:
    """Writes the folder ``folder``, which appears whole or not at all.

    ``made`` is the time that the instances state. ``enhanced`` writes one multi-frame instance of
    an Enhanced source in place of a classic series.
    """

    def __init__(
        self,
        source: DicomSource,
        folder: Path,
        provenance: Provenance,
        *,
        identity: Identity | None = None,
        burn_in: bool = False,
        enhanced: bool = False,
        scratch: Path | None = None,
        made: datetime.datetime | None = None,
    ) -> None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise PoanError(f"{folder}: expected a new or an empty folder")
        self._saturated = 0
        self._stack = source.stack
        self._folder = folder
        self._provenance = provenance
        self._identity = identity or Identity()
        self._burn_in, self._enhanced = burn_in, enhanced
        self._scratch = scratch
        self._made = made or datetime.datetime.now()
        self._slope, self._inter, self._dtype = _output_scale(source)
        self._resources = contextlib.ExitStack()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Voxels that 16 bits could not hold."""
        if not self._saturated:
            return ()
        return (f"{self._saturated} voxels saturated at the ends of {self._dtype.name}",)

    def begin(self, geometry: Geometry) -> None:
        """See `Sink.begin`."""
        turn, shape, affine = self._stack.turn, geometry.fine_spatial, geometry.fine_affine
        self._axis = geometry.axis
        if self._enhanced:
            check_enhanced(self._stack, turn.axes[self._axis])
        inverse = np.empty(3, int)
        inverse[list(turn.axes)] = range(3)
        columns, rows, slices = (shape[a] for a in inverse)
        self._affine = affine @ np.linalg.inv(turn.matrix((columns, rows, slices)))
        self._shape = (len(self._stack.frames), slices, rows, columns)
        size = int(np.prod(self._shape)) * self._dtype.itemsize
        file = self._resources.enter_context(temporary_file(self._scratch, size))
        with writing(self._scratch):
            self._map = mmap.mmap(file.fileno(), 0)
        self._planes: NDArray[Any] = np.frombuffer(self._map, self._dtype).reshape(self._shape)

    def write(self, volume: int, start: int, fine: NDArray[np.float32]) -> None:
        """See `Sink.write`."""
        turn = self._stack.turn
        stored, saturated = to_stored(fine, self._dtype, self._slope, self._inter)
        self._saturated += saturated
        block = turn.to_stack(np.moveaxis(stored, 0, self._axis))  # (columns, rows up, slices)
        across = turn.axes[self._axis]
        _, slices, rows, columns = self._shape
        extent = (columns, rows, slices)[across]
        first = extent - start - len(fine) if turn.flips[self._axis] else start
        where: list[slice] = [slice(None)] * 3
        where[across] = slice(first, first + len(fine))
        planes = self._planes[volume]  # (slices, rows, columns)
        planes.transpose(2, 1, 0)[:, ::-1][tuple(where)] = block
        self._map.madvise(mmap.MADV_DONTNEED)

    def finish(self, remark: str | None = None) -> None:
        """See `Sink.finish`; the remark goes into every instance."""
        if remark is not None:
            self._provenance = dataclasses.replace(self._provenance, faithfulness=remark)
        parent = self._folder.parent
        with writing(parent):
            partial = Path(tempfile.mkdtemp(dir=parent, prefix=".poan-"))
        try:
            for name, instance in self.one() if self._enhanced else self.instances():
                with writing(parent):
                    save(instance, partial / name)
            with writing(parent):
                if self._folder.exists():
                    self._folder.rmdir()
                partial.chmod(0o755)
                sync_folder(partial)
                partial.rename(self._folder)
                sync_folder(parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def instances(self) -> Iterator[tuple[str, Dataset]]:
        """Every instance with its file's name, in the order of volumes and slices."""
        volumes, slices = self._shape[:2]
        read: tuple[Path, Dataset] | None = None
        for volume in range(volumes):
            sources = self._stack.frames[volume]
            for k in range(slices):
                frame = sources[k * len(sources) // slices]
                if read is None or read[0] != frame.path:
                    read = frame.path, read_header(frame.path)
                number = volume * slices + k + 1
                with reading(frame.path):
                    header = classic_header(read[1], frame.index)
                    if frame.echo_planar:
                        state_echo_planar(header)
                self._describe(header, read[1], frame, number)
                self._place(header, k)
                self._fill(header, self._planes[volume, k])
                yield f"{number:05}.dcm", header

    def one(self) -> Iterator[tuple[str, Dataset]]:
        """The one instance of an Enhanced source; its pixels are in memory."""
        _, slices, rows, columns = self._shape
        frames = [frame for volume in self._stack.frames for frame in volume]
        source = read_header(frames[0].path)
        places = [Dataset() for _ in frames]
        for number, place in enumerate(places):
            self._place(place, number % slices)
        with reading(frames[0].path):
            header = enhanced_header(source, frames, places, self._provenance)
            rescale(header, self._slope, self._inter)
        kept = {name: header[name].value for name in ("SOPClassUID", "ImageType")}
        self._describe(header, source, frames[0], 1)
        for name, value in kept.items():
            setattr(header, name, value)
        for name in ("DerivationDescription", "DerivationCodeSequence", "SourceImageSequence"):
            delattr(header, name)  # each frame says it
        header.SOPInstanceUID = self._identity.uid(self._provenance, "enhanced", self.series)
        header.Rows, header.Columns = rows, columns
        for item in mappings(header):
            _recode(item, self._dtype.kind == "i")
        self._code_pixels(header)
        planes = self._planes.reshape(-1, rows, columns)
        shown = (burn(plane, NOTICE) for plane in planes) if self._burn_in else planes
        header.PixelData = b"".join(np.ascontiguousarray(plane).tobytes() for plane in shown)
        header["PixelData"].VR = "OW"
        yield "00001.dcm", header

    def close(self) -> None:
        """See `Sink.close`."""
        self._resources.close()

    def _describe(self, header: Dataset, source: Dataset, frame: Frame, number: int) -> None:
        """Identity, and what was done (PS3.3 C.7.6.1, C.12.1, C.12.4.1)."""
        made, new = self._provenance, self._identity
        header.SOPClassUID = UID(MR)
        series = sorted({f.series_uid + "/" + self._stack.key for f in self._stack.frames[0]})
        instance = [frame.instance_uid, str(frame.index), str(number)]
        if "series" not in self.__dict__:
            self.series = new.uid(made, "series", *series)
        header.SeriesInstanceUID = self.series
        header.SOPInstanceUID = new.uid(made, "instance", *series, *instance)
        header.SeriesNumber = frame.series_number + SERIES_NUMBER_OFFSET
        header.SeriesDescription = f"{frame.description[:50]} SR x{made.scale} AI".strip()[:64]
        header.InstanceNumber = number
        header.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
        day, clock = self._made.strftime("%Y%m%d"), self._made.strftime("%H%M%S")
        header.InstanceCreationDate, header.InstanceCreationTime = day, clock
        header.ContentDate, header.ContentTime = day, clock
        header.SeriesDate, header.SeriesTime = day, clock
        header.ImageComments = f"{NOTICE}. {made.sentence()}"
        header.DerivationDescription = made.sentence()
        header.DerivationCodeSequence = code("113085", "Spatial resampling")
        multi = frame.index + 1 if frame.enhanced or source.get("NumberOfFrames") else None
        item = source_image(frame.class_uid, frame.instance_uid, multi)
        header.SourceImageSequence = Sequence([item])
        equipment = [*header.get("ContributingEquipmentSequence", []), made.equipment(self._made)]
        header.ContributingEquipmentSequence = Sequence(equipment)
        syntax = str(source.file_meta.get("TransferSyntaxUID", ""))
        lossy = source.get("LossyImageCompression") == "01" or syntax in LOSSY
        header.LossyImageCompression = "01" if lossy else "00"
        written = self._burn_in or source.get("BurnedInAnnotation") == "YES"
        header.BurnedInAnnotation = "YES" if written else "NO"

    def _place(self, header: Dataset, k: int) -> None:
        """The plane module of slice ``k`` (PS3.3 C.7.6.2); rows run down, array rows up."""
        _, slices, rows, columns = self._shape
        lps = LPS @ self._affine
        steps = np.linalg.norm(lps[:3, :3], axis=0)
        row, column = lps[:3, 0] / steps[0], -lps[:3, 1] / steps[1]
        corner = (lps @ [0, rows - 1, k, 1])[:3]
        header.Rows, header.Columns = rows, columns
        header.PixelSpacing = [decimal(steps[1]), decimal(steps[0])]
        header.ImagePositionPatient = [decimal(value) for value in corner]
        header.ImageOrientationPatient = [decimal(value) for value in (*row, *column)]
        header.SliceLocation = decimal(corner @ np.cross(row, column))
        if slices > 1:
            header.SpacingBetweenSlices = decimal(steps[2])
            if slices != len(self._stack.frames[0]):
                header.SliceThickness = decimal(steps[2])
        elif "SpacingBetweenSlices" in header:
            del header.SpacingBetweenSlices

    def _fill(self, header: Dataset, plane: NDArray[Any]) -> None:
        """The pixels and how they are coded; real values stay what they were."""
        self._code_pixels(header)
        for item in header.get("RealWorldValueMappingSequence", []):
            _recode(item, self._dtype.kind == "i")
        if "RescaleSlope" in header or (self._slope, self._inter) != (1.0, 0.0):
            header.RescaleSlope = decimal(self._slope)
            header.RescaleIntercept = decimal(self._inter)
            header.RescaleType = header.get("RescaleType") or "US"
        if self._burn_in:
            plane = burn(plane, NOTICE)
        header.PixelData = np.ascontiguousarray(plane).tobytes()
        header["PixelData"].VR = "OW"

    def _code_pixels(self, header: Dataset) -> None:
        inverted = self._stack.first.inverted
        header.SamplesPerPixel = 1
        header.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
        header.BitsAllocated, header.BitsStored, header.HighBit = 16, 16, 15
        header.PixelRepresentation = int(self._dtype.kind == "i")


def _output_scale(source: DicomSource) -> tuple[float, float, np.dtype[Any]]:
    """Slope, intercept and 16-bit type: the source's, or the coarsest of its slices'.

    They are rounded to float32 as NIfTI holds them, so that both ways out give one integer.
    """
    if source.dtype.kind in "iu":
        return source.slope, source.inter, source.dtype.newbyteorder("<")
    frames = [frame for volume in source.stack.frames for frame in volume]
    coarsest = max(frames, key=lambda frame: abs(frame.slope))
    return coarsest.slope, coarsest.inter, np.dtype("<i2")


def _recode(item: Dataset, signed: bool) -> None:
    """Stored limits of a real-world mapping in the VR that the pixels have now."""
    for name in ("RealWorldValueFirstValueMapped", "RealWorldValueLastValueMapped"):
        if name in item:
            value = int(item[name].value)
            tag = item[name].tag
            del item[name]
            item.add_new(tag, "SS" if signed else "US", min(value, 32767) if signed else value)


def save(instance: Dataset, path: Path) -> None:
    """Write one instance, explicit little-endian, and wait until it is on the disk."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = instance.SOPClassUID
    meta.MediaStorageSOPInstanceUID = instance.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    instance.file_meta = meta
    mode = pydicom.config.settings.writing_validation_mode
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    try:
        with path.open("wb") as file, reading(path):
            pydicom.dcmwrite(file, instance, enforce_file_format=True, overwrite=True)
            file.flush()
            os.fsync(file.fileno())
    finally:
        pydicom.config.settings.writing_validation_mode = mode
