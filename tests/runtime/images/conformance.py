"""What every `Source` and every `Sink` must do; the test of each implementation calls these."""

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poan_runtime.geometry import Geometry
from poan_runtime.images.source import Sink, Source

Array = NDArray[Any]


def check_source(source: Source, expected: Array) -> None:
    """The source holds the real values ``expected`` (its shape), and is closed at the end."""
    assert source.shape == expected.shape
    assert source.affine.shape == (4, 4)
    assert source.affine.dtype == np.float64
    assert np.isfinite(source.affine).all()
    assert source.dtype.kind in "iuf"
    assert all(isinstance(line, str) and "\n" not in line for line in source.warnings)
    spatial = [*expected.shape[:3], 1][:3]
    volumes = expected.reshape(*spatial, -1, order="F")
    for axis in range(3):
        for volume in range(volumes.shape[3]):
            slices = np.moveaxis(volumes[..., volume], axis, 0).astype(np.float32)
            found = source.read_slices(axis, 0, len(slices), volume)
            assert found.dtype == np.float32
            assert np.array_equal(found, slices)
            assert np.array_equal(
                source.read_slices(axis, len(slices) - 1, len(slices), volume), slices[-1:]
            )
    first = source.read_slices(2, 0, 1)
    kept = first.copy()
    first[:] = -1  # the array is the caller's: the source does not change with it
    assert np.array_equal(source.read_slices(2, 0, 1), kept)
    assert all(len(digest) == 64 for digest in source.sha256().values())
    source.close()
    source.close()


SHAPE = (4, 6, 5, 2)


def check_sink(make: Callable[[], Sink], read: Callable[[], Array | None]) -> None:
    """A fresh sink from ``make`` each time; ``read`` gives what appeared, None while nothing did.

    The sink must hold float32, or integers up to 1000, of shape `SHAPE`.
    """
    data = np.random.default_rng(0).integers(0, 1000, SHAPE).astype(np.float32)
    for axis in range(3):
        geometry = Geometry.derive(SHAPE, np.eye(4), scale=1, grid="centre", axis=axis)
        if axis == 0:
            _check_abandoned(make(), geometry, data, read)
        with contextlib.closing(make()) as sink:
            sink.begin(geometry)
            _write(sink, geometry, data)
            sink.finish("remark")
            found = read()
        assert found is not None, "finish lets the output appear"
        assert np.array_equal(found, data)
        assert sink.warnings == ()
        sink.close()
        assert read() is not None, "close after finish takes nothing away"


def _check_abandoned(
    sink: Sink, geometry: Geometry, data: Array, read: Callable[[], Array | None]
) -> None:
    """Nothing appears of what is not finished."""
    with contextlib.closing(sink):
        sink.begin(geometry)
        _write(sink, geometry, data)
        assert read() is None, "nothing appears before finish"
    assert read() is None, "nothing appears of what was given up"
    sink.close()


def _write(sink: Sink, geometry: Geometry, data: Array) -> None:
    """Every slab in order, in parts of two slices."""
    for volume in range(geometry.volumes):
        slices = np.moveaxis(data[..., volume], geometry.axis, 0)
        for start in range(0, len(slices), 2):
            sink.write(volume, start, np.ascontiguousarray(slices[start : start + 2]))
