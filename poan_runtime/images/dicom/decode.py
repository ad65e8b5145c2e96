"""Stored integers of a file's frames, by the decoder that fits its transfer syntax."""

import contextlib
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pydicom
from numpy.typing import NDArray
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileDataset
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from poan_runtime.errors import PoanError
from poan_runtime.images.dicom.files import (
    LONGEST_VALUE,
    ClampedFile,
    codestream_size,
    read_header,
    reading,
)
from poan_runtime.images.dicom.frames import Frame

OPENJPEG = (JPEG2000, JPEG2000Lossless, HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL)
JPEG_LS = (JPEGLSLossless, JPEGLSNearLossless)
PLUGINS = {
    **dict.fromkeys(OPENJPEG, "pylibjpeg"),
    **dict.fromkeys(JPEG_LS, "pyjpegls"),
    RLELossless: "pydicom",
}
"""Which of pydicom's plug-ins decodes; any that is installed for the other syntaxes.

RLE has no size of its own, and pydicom's own decoder alone says when a frame is longer than its
header says; pylibjpeg-rle panics on broken ones.
"""
PACKAGES = {
    **dict.fromkeys(OPENJPEG, "pylibjpeg-openjpeg"),
    **dict.fromkeys(JPEG_LS, "pyjpegls"),
}
"""What to install for a syntax; python-gdcm for the JPEG ones."""

NEEDED = ("PixelData", "PixelRepresentation", "PhotometricInterpretation")


def decode(path: Path, indices: list[int], like: Frame) -> Iterator[NDArray[Any]]:
    """The stored integers of some frames of a file, each (rows, columns), one at a time."""
    header = read_header(path, pixels=True)
    with reading(path):
        syntax = UID(str(header.file_meta.get("TransferSyntaxUID", "")))
        if not syntax.is_transfer_syntax:
            raise PoanError(f"{path}: does not say how its pixels are coded")
        for name in NEEDED:
            if name not in header:
                raise PoanError(f"{path}: lacks {name}")
        if not syntax.is_encapsulated:
            _check_length(path, header)
    if syntax.is_encapsulated:
        _check_codestreams(path, like)
    with reading(path), contextlib.ExitStack() as stack:
        warnings.filterwarnings("error", message=".*padding.*")  # a frame longer than it says
        file: Any = stack.enter_context(ClampedFile(path))
        if syntax == DeflatedExplicitVRLittleEndian:  # in memory: files.py has measured it
            file = pydicom.dcmread(file)
        try:
            planes = iter_pixels(
                file, raw=True, indices=indices, decoding_plugin=PLUGINS.get(syntax, "")
            )
            stack.callback(planes.close)  # type: ignore[attr-defined]
            for _ in indices:
                plane = next(planes)
                if plane.shape != (like.rows, like.columns):
                    raise PoanError(f"{path}: a frame is {plane.shape}, its header says otherwise")
                yield plane
        except StopIteration:
            raise PoanError(f"{path}: holds fewer frames than it says") from None
        except (RuntimeError, NotImplementedError):
            lacking = _lacking(syntax, like)
            if lacking is None:
                raise
            raise PoanError(f"{path}: {syntax.name}: {lacking}") from None


def _lacking(syntax: UID, like: Frame) -> str | None:
    """What mends the absence of a decoder; None if one is there, so that the file is to blame."""
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        return "there is no decoder for it; convert the series to another transfer syntax"
    if syntax == JPEGExtended12Bit and like.bits > 8 and find_spec("libjpeg") is None:
        return "with over 8 bits needs pip install pylibjpeg-libjpeg (GPL)"
    wanted = PLUGINS.get(syntax)
    if not decoder.is_available or (wanted and wanted not in decoder.available_plugins):
        return f"pip install {PACKAGES.get(syntax, 'python-gdcm')}"
    return None


def _check_length(path: Path, header: FileDataset) -> None:
    """Plain pixels must be as long as rows, columns, bits and frames say, and be all there."""
    element: Any = header.get_item("PixelData", keep_deferred=True)
    frames = int(header.get("NumberOfFrames") or 1)
    needed = frames * int(header.Rows) * int(header.Columns) * int(header.BitsAllocated) // 8
    stated = element.length if isinstance(element, RawDataElement) else len(element.value)
    if not needed <= stated <= needed + needed % 2:
        raise PoanError(
            f"{path}: its pixels are {stated} bytes, {header.Rows} rows of {header.Columns} in "
            f"{frames} frames need {needed}"
        )
    left_in_file = element.value is None
    there = path.stat().st_size - element.value_tell if left_in_file else len(element.value)
    if there < needed:
        raise PoanError(f"{path}: is cut short, {needed - there} bytes are missing")


def _check_codestreams(path: Path, like: Frame) -> None:
    """What a compressed frame says of its own size must be what the header says."""
    header = read_header(path)
    with reading(path), ClampedFile(path) as file:
        file.seek(_pixel_offset(path))
        count = int(header.get("NumberOfFrames") or 1)
        for data in generate_frames(file, number_of_frames=count):
            size = codestream_size(data[: 1 << 16])
            if size is not None and size != (like.rows, like.columns):
                raise PoanError(
                    f"{path}: a frame is coded as {size[0]} rows of {size[1]}, the header says "
                    f"{like.rows} of {like.columns}"
                )


def _pixel_offset(path: Path) -> int:
    """Where the value of the pixel data begins in a file of explicit VR."""
    with ClampedFile(path) as file:
        pydicom.dcmread(file, stop_before_pixels=True, defer_size=LONGEST_VALUE)
        return file.tell() + 12
