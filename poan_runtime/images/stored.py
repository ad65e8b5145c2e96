"""Real values and how a file stores them: type, slope and intercept."""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stored:
    """How an output stores real values: ``stored * slope + inter``.

    ``scaled`` says that slope and intercept are the input's; else they are 1 and 0, and real
    values themselves are stored.
    """

    dtype: np.dtype[Any]
    slope: float
    inter: float
    scaled: bool

    @property
    def half_step(self) -> float:
        """Real values that are closer to one that is stored than this are written as that one.

        >>> stored_as(np.dtype("int16"), 0.5, 3.0).half_step
        0.25
        """
        return abs(self.slope) / 2 if self.dtype.kind in "iu" else 0.0


def stored_as(
    source: np.dtype[Any], slope: float, inter: float, dtype: np.dtype[Any] | None = None
) -> Stored:
    """How an output of type ``dtype`` (None: the input's) stores what the input can.

    Slope and intercept stay for a type that holds all that the input's can store. A derived
    DICOM series has a rule of its own (`poan_runtime.images.dicom.derived`).

    >>> stored_as(np.dtype("int16"), 0.5, 3.0).slope
    0.5
    >>> stored_as(np.dtype("int16"), 0.5, 3.0, np.dtype("float32")).slope
    1.0
    """
    wanted = source if dtype is None else dtype
    scaled = source.kind == wanted.kind == "f" or (
        wanted.kind in "iu" and np.can_cast(source, wanted)
    )
    if not scaled:
        slope, inter = 1.0, 0.0
    return Stored(dtype=wanted, slope=slope, inter=inter, scaled=scaled)


def to_stored(
    real: NDArray[np.float32], dtype: np.dtype[Any], slope: float, inter: float
) -> tuple[NDArray[Any], int]:
    """Real values as stored ones, and how many of them the type could not hold.

    Integers are rounded to nearest (ties to even) and saturate at the ends of the type.

    >>> stored, saturated = to_stored(np.float32([-3, 1.6, 300]), np.dtype("uint8"), 1.0, 0.0)
    >>> stored.tolist(), saturated
    ([0, 2, 255], 2)
    """
    unscaled = (slope, inter) == (1.0, 0.0)
    values: NDArray[Any] = real
    with np.errstate(over="ignore", under="ignore"):
        if not unscaled:
            values = (real.astype(np.float64) - inter) / slope
        elif dtype.itemsize > 2 and dtype.kind != "f":
            values = real.astype(np.float64)
        if dtype.kind == "f":
            return _as_float(values, dtype)
    values = np.rint(values)
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    saturated = 0
    if values.size and (values.min() < least or values.max() > most):
        saturated = int(np.count_nonzero((values < least) | (values > most)))
        largest = values.dtype.type(most)
        if int(largest) > most:  # 2**63 - 1 rounds up in float64
            largest = np.nextafter(largest, values.dtype.type(0))
        np.clip(values, values.dtype.type(least), largest, out=values)
    return values.astype(dtype), saturated


def _as_float(values: NDArray[Any], dtype: np.dtype[Any]) -> tuple[NDArray[Any], int]:
    """Values in a float type, those beyond it at its ends."""
    most = float(np.finfo(dtype).max)
    held = values.astype(dtype)
    if np.isfinite(held).all():
        return held, 0
    return np.clip(values, -most, most).astype(dtype), int(np.count_nonzero(~np.isfinite(held)))
