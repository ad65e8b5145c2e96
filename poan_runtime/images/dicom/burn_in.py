"""Words in the pixels themselves, for viewers that show nothing else."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

ROWS_PER_LINE, SMALLEST = 24, 10
"""A letter takes this share of the rows, and no fewer pixels than can be read."""


def burn(plane: NDArray[Any], text: str) -> NDArray[Any]:
    """A copy of (rows, columns) with ``text`` along its lower edge, bright on dark.

    The words take the plane's largest value and their ground its smallest, so that any window
    that shows the image shows them; a plane of one value gets one unit more. They go on as many
    lines as they need; only a word that is wider than the plane is squeezed.
    """
    rows, columns = plane.shape
    bright = written(text, max(SMALLEST, rows // ROWS_PER_LINE), columns)[:rows]
    out = plane.copy()
    dark, light = int(plane.min()), int(plane.max())
    light += light == dark
    out[rows - len(bright) :, : bright.shape[1]] = np.where(bright, light, dark)
    return out


def written(text: str, size: int, columns: int) -> NDArray[np.bool_]:
    """Where the letters of a text are, (rows, at most ``columns``)."""
    font = ImageFont.load_default(size)
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) + 4 <= columns:
            lines[-1] = longer
        else:
            lines.append(word)
    broken = "\n".join(lines)
    draw = ImageDraw.Draw(Image.new("L", (1, 1)))
    left, top, right, bottom = draw.multiline_textbbox((0, 0), broken, font, spacing=2)
    mask = Image.new("L", (int(right - left) + 4, int(bottom - top) + 4))
    place = (2 - left, 2 - top)
    ImageDraw.Draw(mask).multiline_text(place, broken, 255, font, spacing=2)
    if mask.width > columns:
        mask = mask.resize((columns, max(1, mask.height * columns // mask.width)))
    return np.asarray(mask) > 80
