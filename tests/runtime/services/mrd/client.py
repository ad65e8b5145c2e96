"""A client that is not ours: the package ismrmrd."""

import socket
import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

ismrmrd = pytest.importorskip("ismrmrd")
from ismrmrd.serialization import (  # noqa: E402
    ConfigFile,
    ISMRMRDMessageID,
    ProtocolDeserializer,
    ProtocolSerializer,
)

HERE = "127.0.0.1"
Reply = list[Any]


def image(data: NDArray[Any], number: int = 0, **fields: Any) -> Any:
    """One image of (y, x), 1.5 x 2 mm, as a reconstruction hands it over."""
    made = ismrmrd.Image.from_array(data, transpose=False)
    y, x = data.shape[-2:]
    facts = {"slice": number, "image_index": number + 1, "image_series_index": 3} | fields
    for name, value in {"image_type": 1, **facts}.items():
        setattr(made, name, value)
    made.field_of_view[:] = (1.5 * x, 2.0 * y, 4.0)
    made.position[:] = (10.0, -20.0, 4.0 * number)
    made.read_dir[:], made.phase_dir[:], made.slice_dir[:] = (1, 0, 0), (0, 1, 0), (0, 0, 1)
    meta = ismrmrd.Meta({"DataRole": "Image", "ImageProcessingHistory": ["FIRE"], "Mine": "kept"})
    made.attribute_string = meta.serialize()
    return made


def header(
    encoded: tuple[int, int],
    encoded_mm: tuple[float, float],
    recon: tuple[int, int],
    recon_mm: tuple[float, float],
    limits: tuple[int, int, int] | None = None,
) -> bytes:
    """A header; sizes are (readout, phase), ``limits`` first, last and central phase line."""
    xsd = ismrmrd.xsd

    def space(matrix: tuple[int, int], mm: tuple[float, float]) -> Any:
        size = xsd.matrixSizeType(x=matrix[0], y=matrix[1], z=1)
        return xsd.encodingSpaceType(
            matrixSize=size, fieldOfView_mm=xsd.fieldOfViewMm(x=mm[0], y=mm[1], z=4.0)
        )

    phase = (
        xsd.limitType(minimum=limits[0], maximum=limits[1], center=limits[2]) if limits else None
    )
    encoding = xsd.encodingType(
        encodedSpace=space(encoded, encoded_mm),
        reconSpace=space(recon, recon_mm),
        encodingLimits=xsd.encodingLimitsType(kspace_encoding_step_1=phase),
        trajectory=xsd.trajectoryType.CARTESIAN,
    )
    conditions = xsd.experimentalConditionsType(H1resonanceFrequency_Hz=123_000_000)
    made = xsd.ismrmrdHeader(experimentalConditions=conditions, encoding=[encoding])
    text: str = xsd.ToXML(made)
    return text.encode()


def replies(port: int, images: list[Any], header: bytes = b"Dummy XML header\0") -> Reply:
    """What the server answers to a measurement, as FIRE sends it."""
    with (
        socket.create_connection((HERE, port), timeout=60) as connection,
        connection.makefile("wb") as out,
        connection.makefile("rb") as back,
    ):
        serializer = ProtocolSerializer(out)
        serializer.serialize(ConfigFile("poan"))
        out.write(struct.pack("<HI", ISMRMRDMessageID.HEADER, len(header)) + header)
        for one in images:
            serializer.serialize(one)
        serializer.close()
        return [*ProtocolDeserializer(back).deserialize()]


def plane(seed: int, shape: tuple[int, int] = (20, 18)) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).integers(1, 4000, shape).astype(np.uint16)
