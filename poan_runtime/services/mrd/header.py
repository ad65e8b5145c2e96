"""What a measurement's header says was acquired (https://ismrmrd.readthedocs.io, MRD 1)."""

import dataclasses
import math
from xml.etree import ElementTree

SAME_FIELD = 0.02
"""Shares by which two fields of view may differ and be one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoding:
    """One encoding: lines per mm that were acquired, and the field of view of its images.

    Both are (readout, phase encoding).
    """

    density: tuple[float, float]
    field_mm: tuple[float, float]

    def lines(self, field_mm: tuple[float, float]) -> tuple[int, int]:
        """Lines along (readout, phase encoding) over a field of view of that order."""
        readout, phase = (round(d * f) for d, f in zip(self.density, field_mm, strict=True))
        return readout, phase


def encodings(header: str) -> tuple[Encoding, ...]:
    """The Cartesian encodings of a header; none of one that is no XML or leaves numbers out.

    >>> encodings("Dummy XML header")
    ()
    """
    try:
        root = ElementTree.fromstring(header)
    except ElementTree.ParseError:
        return ()
    read = (_encoding(element) for element in root.findall("{*}encoding"))
    return tuple(one for one in read if one is not None)


def _encoding(element: ElementTree.Element) -> Encoding | None:
    if (element.findtext("{*}trajectory") or "").strip().lower() != "cartesian":
        return None
    try:
        matrix = _pair(element, "encodedSpace", "matrixSize")
        encoded_mm = _pair(element, "encodedSpace", "fieldOfView_mm")
        field_mm = _pair(element, "reconSpace", "fieldOfView_mm")
    except (TypeError, ValueError):
        return None
    lines = (matrix[0], _acquired(element, matrix[1]))
    density = (lines[0] / encoded_mm[0], lines[1] / encoded_mm[1])
    return Encoding(density=density, field_mm=field_mm)


def _pair(element: ElementTree.Element, space: str, name: str) -> tuple[float, float]:
    """The x and y of a size; raises TypeError where there is none, ValueError for what is odd."""
    where = f"{{*}}{space}/{{*}}{name}/{{*}}"
    x, y = (float(str(element.findtext(where + axis))) for axis in "xy")
    if not (0 < x < math.inf and 0 < y < math.inf):
        raise ValueError(f"{space}, {name}: expected sizes above 0, got {x} and {y}")
    return x, y


def _acquired(element: ElementTree.Element, lines: float) -> float:
    """Phase encoding lines that were acquired, or follow from their mirror (partial Fourier)."""
    where = "{*}encodingLimits/{*}kspace_encoding_step_1/{*}"
    try:
        first, last, centre = (
            int(str(element.findtext(where + name))) for name in ("minimum", "maximum", "center")
        )
    except ValueError:
        return lines
    if not 0 <= first <= centre <= last < lines:
        return lines
    return min(lines, 2 * max(centre - first, last - centre + 1))


def lines_of(found: tuple[Encoding, ...], field_mm: tuple[float, float]) -> list[tuple[int, int]]:
    """(rows, columns) that were acquired of an image with a field of view (x, y).

    The first encoding with such a field counts. MRD has readout along x, so that comes first; an
    image that was turned has it along y. Both are given where the field of view tells them not
    apart; none where no encoding has that field.
    """
    for one in found:
        orders = []
        if _same(one.field_mm, field_mm):
            columns, rows = one.lines(field_mm)
            orders.append((rows, columns))
        if _same(one.field_mm, field_mm[::-1]):
            orders.append(one.lines(field_mm[::-1]))
        if orders:
            return orders
    return []


def _same(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return all(abs(x - y) <= SAME_FIELD * max(x, y) for x, y in zip(a, b, strict=True))
