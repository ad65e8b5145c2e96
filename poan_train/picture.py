"""The picture of an evaluation: LR, interpolation, SR and HR side by side, and their errors."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from poan_runtime.errors import PoanError
from poan_runtime.files import WholeFile
from poan_train.degrade import Array


def check_picture(path: Path) -> None:
    """Raises PoanError unless the name ends as a PNG's."""
    if path.suffix != ".png":
        raise PoanError(f"{path}: expected a name that ends in .png")


def write_picture(path: Path, panels: Sequence[tuple[str, Sequence[Array]]], rival: str) -> None:
    """Write the `picture` as a PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = io.BytesIO()
    picture(panels, rival=rival).save(encoded, "PNG")
    with WholeFile(path) as file:
        file.write(encoded.getvalue())


def picture(
    panels: Sequence[tuple[str, Sequence[Array]]], size: int = 160, rival: str = "bicubic"
) -> Image.Image:
    """One row per volume: crops of LR, its rival, SR, HR, and both errors five times enlarged."""
    names = ("LR", rival, "SR", "HR", f"error of {rival} x5", "error of SR x5")
    cell = 2 * size
    sheet = Image.new("L", (cell * len(names), (cell + 16) * len(panels)), 0)
    draw = ImageDraw.Draw(sheet)
    for r, (title, (lr, up, sr, hr)) in enumerate(panels):
        scale = hr.shape[0] // lr.shape[0]
        views = [np.kron(lr, np.ones((scale, scale))), up, sr, hr]
        views += [5 * np.abs(up - hr), 5 * np.abs(sr - hr)]
        top, left = ((n - min(size, n)) // 2 for n in hr.shape)
        white = float(np.percentile(hr, 99.8)) or 1.0
        for c, (name, view) in enumerate(zip(names, views, strict=True)):
            crop = view[top : top + size, left : left + size]
            grey = Image.fromarray(np.uint8(np.clip(crop / white, 0, 1) * 255))
            sheet.paste(
                grey.resize((cell, cell), Image.Resampling.NEAREST),
                (c * cell, r * (cell + 16) + 16),
            )
            label = f"{name}  {title}" if c == 0 else name
            draw.text((c * cell + 4, r * (cell + 16) + 2), label, fill=255)
    return sheet
