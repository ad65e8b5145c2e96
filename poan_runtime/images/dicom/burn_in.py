"""Words in the pixels themselves, for viewers that show nothing else."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

ROWS_PER_LINE = 24


def burn(plane: NDArray[Any], text: str) -> NDArray[Any]:
    """A copy of (rows, columns) with ``text`` along its lower edge, bright on dark.

    The words take the plane's largest value and their ground its smallest, so that any window
    that shows the image shows them; a plane of one value gets one unit more.
    """
    rows, columns = plane.shape
    font = ImageFont.load_default(max(8, rows // ROWS_PER_LINE))
    left, top, right, bottom = font.getbbox(text)
    mask = Image.new("L", (int(right - left) + 4, int(bottom - top) + 4))
    ImageDraw.Draw(mask).text((2 - left, 2 - top), text, 255, font=font)
    if mask.width > columns:
        mask = mask.resize((columns, max(1, mask.height * columns // mask.width)))
    bright = np.asarray(mask)[:rows] > 127
    out = plane.copy()
    dark, light = int(plane.min()), int(plane.max())
    light += light == dark
    out[rows - len(bright) :, : bright.shape[1]] = np.where(bright, light, dark)
    return out
