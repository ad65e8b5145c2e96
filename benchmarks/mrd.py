"""poan-mrd against poan-run on the same scan: voxels and latency.

    python -m benchmarks.mrd SCAN.nii.gz --model t2_x2 --out benchmarks/results/mrd/mrd.json

The slices go through a server on loopback one by one, as float32, each after the answer to the one
before. What differs from poan-run is the intensity unit (first slice, middle slice first, whole
volume). With --native on both crop a zero-filled scan to its native matrix, which a header tells
poan-mrd as poan-run found it.
"""

import argparse
import contextlib
import struct
import threading
import time
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from benchmarks.record import machine, tell
from poan_runtime import Settings
from poan_runtime.engines.backend import EngineOptions
from poan_runtime.images.formats import open_source
from poan_runtime.network import Network, load_network
from poan_runtime.services.mrd.finer import Way
from poan_runtime.services.mrd.serve import Server, warm_up
from poan_runtime.super_resolve import SuperResolution


def header_of(matrix: tuple[int, int], native: tuple[int, int]) -> str:
    """A header of images of 1 mm: (rows, columns) as they are and as they were acquired."""
    xsd = ismrmrd.xsd
    field = xsd.fieldOfViewMm(x=matrix[1], y=matrix[0], z=1)

    def space(size: tuple[int, int]) -> Any:
        sides = xsd.matrixSizeType(x=size[1], y=size[0], z=1)
        return xsd.encodingSpaceType(matrixSize=sides, fieldOfView_mm=field)

    encoding = xsd.encodingType(
        encodedSpace=space(native),
        reconSpace=space(matrix),
        encodingLimits=xsd.encodingLimitsType(),
        trajectory=xsd.trajectoryType.CARTESIAN,
    )
    conditions = xsd.experimentalConditionsType(H1resonanceFrequency_Hz=123_000_000)
    text: str = xsd.ToXML(xsd.ismrmrdHeader(experimentalConditions=conditions, encoding=[encoding]))
    return text


def served(
    network: Network, way: Way, planes: Any, order: list[int], header: str = ""
) -> tuple[Any, list[float]]:
    """Fine slices in the order of ``planes``, and the seconds that each took."""
    import socket

    from ismrmrd.serialization import (
        ISMRMRDMessageID,
        ProtocolDeserializer,
        ProtocolSerializer,
    )

    server = Server(network, way, ("127.0.0.1", 0), say=lambda line: None)
    threading.Thread(target=server.run, daemon=True).start()
    fine: dict[int, NDArray[np.float32]] = {}
    took: list[float] = []
    with (
        socket.create_connection(("127.0.0.1", server.port)) as connection,
        connection.makefile("wb") as out,
        connection.makefile("rb") as back,
    ):
        serializer, answers = ProtocolSerializer(out), ProtocolDeserializer(back).deserialize()
        out.write(struct.pack("<HI", ISMRMRDMessageID.HEADER, len(header)) + header.encode())
        for k in order:
            image = ismrmrd.Image.from_array(np.ascontiguousarray(planes[k]), transpose=False)
            image.image_type, image.slice = 1, k
            image.field_of_view[:] = (planes.shape[2], planes.shape[1], 1)
            start = time.perf_counter()
            serializer.serialize(image)
            out.flush()
            if not way.wait_volume:
                answer = next(answers)
                took.append(time.perf_counter() - start)
                fine[answer.slice] = answer.data[0, 0]
        serializer.close()
        for answer in answers:
            fine[answer.slice] = answer.data[0, 0]
    server.close()
    return np.stack([fine[k] for k in range(len(planes))]), took


def main() -> None:
    """Measure and write."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("scan", type=Path)
    p.add_argument("--model", default="t2_x2")
    p.add_argument("--native", default="off", choices=["off", "on"])
    p.add_argument("--out", type=Path)
    args = p.parse_args()
    settings = Settings(native=args.native)
    found: dict[str, Any] = {"machine": machine(), "model": args.model, "native": args.native}
    with (
        load_network(args.model, EngineOptions()) as network,
        contextlib.closing(open_source(args.scan)) as source,
    ):
        run = SuperResolution(source, network, settings)
        axis = run.geometry.axis
        planes = source.read_slices(axis, 0, source.shape[axis])
        expected = np.concatenate([pair.sr for pair in run.slabs()])[: len(planes)]
        unit = run.outcome().units[0]
        found |= {"shape": list(planes.shape), "engine": network.opened.name}
        found["precision"] = network.opened.precision
        header = ""
        if run.native_used and run.measured is not None:
            header = header_of(planes.shape[1:], run.measured.native.native)
            found["acquired"] = list(run.measured.native.native)
        inside = [*range(len(planes))]
        middle = sorted(inside, key=lambda k: abs(k - len(planes) // 2))
        whole = Way(settings=settings, wait_volume=True)
        for name, way, order in (
            ("unit of the first slice", Way(settings=settings), inside),
            ("unit of the middle slice, which comes first", Way(settings=settings), middle),
            ("unit of the volume, --unit", Way(settings=settings, unit=unit), inside),
            ("--wait-volume", whole, inside),
        ):
            warm_up(network, way)
            fine, took = served(network, way, planes, order, header)
            off = np.abs(fine - expected) / unit
            found[name] = {
                "mean_difference_share_of_unit": float(off.mean()),
                "largest_difference_share_of_unit": float(off.max()),
            }
            if took:
                p50, p99 = np.percentile(took, [50, 99])
                found[name] |= {"p50_ms": round(1e3 * p50, 1), "p99_ms": round(1e3 * p99, 1)}
    tell(found, args.out)


if __name__ == "__main__":
    main()
