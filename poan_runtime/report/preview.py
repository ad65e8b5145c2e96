"""A picture to look at: LR, bicubic, sinc and SR of a slice side by side, and a crop enlarged."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from poan_runtime.as_measured import resampled
from poan_runtime.files import WholeFile
from poan_runtime.geometry import Affine, Geometry, in_plane_axes, spacing
from poan_runtime.super_resolve import Pair

Picture = NDArray[np.float32]

PANEL = 420
"""Pixels along the longer side of a panel."""
CROP_SHARE = 4
GAP = 6
CAPTION = 16


class Preview:
    """Keeps the middle slice of the first volume as its slabs go by; `write` draws it."""

    def __init__(self) -> None:
        self._slice: tuple[Picture, Picture] | None = None

    def __call__(self, geometry: Geometry, pair: Pair) -> None:
        """Look at one slab; a `poan_runtime.super_resolve.Consumer`."""
        middle = geometry.slices // 2 - pair.start
        if pair.volume == 0 and 0 <= middle < len(pair.lr):
            self._slice = pair.lr[middle].copy(), pair.sr[middle].copy()

    def write(self, path: Path, geometry: Geometry) -> None:
        """Write the picture as PNG, once every slab was seen."""
        assert self._slice is not None, "a run shows every slice"
        write_preview(path, *self._slice, geometry.affine, geometry.axis)


def write_preview(
    path: Path,
    coarse: Picture,
    fine: Picture,
    affine: Affine,
    axis: int,
    truth: Picture | None = None,
) -> None:
    """Write the panels as PNG: the same slice as LR, by bicubic, by sinc, as SR, and its truth.

    ``coarse`` is (h, w), ``fine`` (s*h, s*w), as is ``truth`` where it is known.
    """
    height, width = physical_size(fine.shape, affine, axis)
    if is_turned(affine, axis):
        height, width = width, height
    size = width, height
    on_fine = {"sinc": resampled(coarse, (fine.shape[0], fine.shape[1])), "SR": fine}
    if truth is not None:
        on_fine["truth"] = truth
    coarse = upright(coarse, affine, axis)
    image = Image.fromarray(coarse)  # mode F: resampled before the grey levels are cut
    panels = {
        "LR, nearest": image.resize(size, Image.Resampling.NEAREST),
        "bicubic": image.resize(size, Image.Resampling.BICUBIC),
    }
    for name, pixels in on_fine.items():
        turned = Image.fromarray(upright(pixels, affine, axis))
        panels[name] = turned.resize(size, Image.Resampling.BOX)
    low, high = _window(coarse)
    columns = [_column(name, _grey(np.asarray(p), low, high)) for name, p in panels.items()]
    _write_sheet(path, columns)


def _write_sheet(path: Path, columns: list[Image.Image]) -> None:
    """The columns side by side, as PNG."""
    sheet = Image.new("L", (len(columns) * (PANEL + GAP) - GAP, columns[0].height))
    for index, column in enumerate(columns):
        sheet.paste(column, (index * (PANEL + GAP), 0))
    encoded = io.BytesIO()
    sheet.save(encoded, "PNG")
    with WholeFile(path) as file:
        file.write(encoded.getvalue())


def physical_size(shape: tuple[int, ...], affine: Affine, axis: int) -> tuple[int, int]:
    """Rows and columns of a slice in pixels that are square in the world, none fewer than voxels.

    >>> physical_size((92, 1272), np.diag([1.0, 1.0, 4.0, 1.0]), 1)
    (92, 5088)
    """
    steps = spacing(affine)[list(in_plane_axes(axis))]
    rows, columns = np.array(shape) * steps / steps.min() if steps.min() > 0 else shape
    return max(1, round(rows)), max(1, round(columns))


def is_turned(affine: Affine, axis: int) -> bool:
    """Whether `upright` swaps rows and columns."""
    first, second = in_plane_axes(axis)
    worlds = np.abs(np.asarray(affine)[:3, [first, second]]).argmax(axis=0)
    return bool(worlds[0] < worlds[1])


def upright(picture: Picture, affine: Affine, axis: int) -> Picture:
    """A slice as it is looked at: superior or anterior up, right or anterior to the left.

    Rows of ``picture`` run along the first in-plane axis, columns along the second.

    >>> slice_xy = np.float32([[1, 2], [3, 4]])  # x down the rows, y along the columns
    >>> upright(slice_xy, np.eye(4), 2).tolist()
    [[4.0, 2.0], [3.0, 1.0]]
    """
    first, second = in_plane_axes(axis)
    worlds = np.abs(np.asarray(affine)[:3, [first, second]]).argmax(axis=0)
    if is_turned(affine, axis):
        picture, (first, second), worlds = picture.T, (second, first), worlds[::-1]
    signs = [np.asarray(affine)[worlds[0], first], np.asarray(affine)[worlds[1], second]]
    down = picture[::-1] if signs[0] >= 0 else picture
    return np.ascontiguousarray(down[:, ::-1] if signs[1] >= 0 else down)


def _window(coarse: Picture) -> tuple[float, float]:
    """Grey levels from the 1st to the 99.5th percentile of what is finite."""
    finite = coarse[np.isfinite(coarse)]
    if finite.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(finite, [1, 99.5])
    return float(low), float(high) if high > low else float(low) + 1.0


def _grey(pixels: NDArray[np.float32], low: float, high: float) -> Image.Image:
    share = np.nan_to_num((pixels - low) / (high - low), posinf=1.0, neginf=0.0)
    return Image.fromarray((np.clip(share, 0, 1) * 255).round().astype(np.uint8))


def _column(name: str, whole: Image.Image) -> Image.Image:
    """Caption, whole slice and enlarged middle, one above the other."""
    crop_width = max(1, whole.width // CROP_SHARE)
    crop_height = max(1, whole.height // CROP_SHARE)
    left, top = (whole.width - crop_width) // 2, (whole.height - crop_height) // 2
    crop = whole.crop((left, top, left + crop_width, top + crop_height))
    zoom = PANEL / max(whole.size)
    size = max(1, round(whole.width * zoom)), max(1, round(whole.height * zoom))
    column = Image.new("L", (PANEL, CAPTION + 2 * size[1] + GAP))
    ImageDraw.Draw(column).text((2, 2), name, fill=255)
    column.paste(whole.resize(size, Image.Resampling.BOX), (0, CAPTION))
    column.paste(crop.resize(size, Image.Resampling.NEAREST), (0, CAPTION + size[1] + GAP))
    return column
