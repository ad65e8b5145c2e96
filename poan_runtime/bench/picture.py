"""Latency distributions as a picture: the share of batches that took at most so long."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from poan_runtime.files import WholeFile

WIDTH, HEIGHT = 900, 480
LEFT, RIGHT, TOP, BOTTOM = 60, 20, 20, 60
COLOURS = ("#1b6ca8", "#c8553d", "#2a7f62", "#7b4b94", "#b58900", "#444444")
TICKS = 6
MARKS = (50, 90)
LONGEST_LABEL = 60


def write_plot(path: Path, document: dict[str, Any]) -> None:
    """Write the empirical distribution of each model's batch latency as PNG.

    The axis is logarithmic and ends 5 % beyond the largest p99 of all models; slower samples lie
    beyond it.
    """
    series = [
        (model["label"], np.sort(model["samples_ms"]["total"])) for model in document["models"]
    ]
    low = min(values[0] for _, values in series)
    high = max(model["latency_ms"]["total"]["p99"] for model in document["models"])
    low, high = 0.95 * low, 1.05 * high
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)

    def place(milliseconds: float, share: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * float(np.log(milliseconds / low) / np.log(high / low))
        return x, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    for percent in (0, *MARKS, 100):
        y = place(low, percent / 100)[1]
        draw.line([(LEFT, y), (WIDTH - RIGHT, y)], fill="#dddddd")
        draw.text((8, y - 6), f"{percent} %", fill="black")
    for tick in np.geomspace(low, high, TICKS):
        x, y = place(float(tick), 0)
        draw.line([(x, y), (x, y + 5)], fill="black")
        draw.text((x - 18, y + 8), f"{tick:.3g}", fill="black")
    draw.text(
        (LEFT, HEIGHT - 22),
        "ms per batch, host to host (logarithmic); height: share that took at most so long",
        fill="black",
    )
    for index, (label, values) in enumerate(series):
        colour = COLOURS[index % len(COLOURS)]
        shares = np.arange(1, len(values) + 1) / len(values)
        corners = [place(float(values[0]), 0.0)]
        before = 0.0
        for value, share in zip(values, shares, strict=True):
            if value > high:
                break
            corners += [place(float(value), before), place(float(value), float(share))]
            before = float(share)
        draw.line(corners, fill=colour, width=2)
        place_of_label = (WIDTH // 2, HEIGHT - BOTTOM - 16 * (len(series) - index))
        draw.text(place_of_label, label[-LONGEST_LABEL:], fill=colour)
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    with WholeFile(path) as file:
        file.write(encoded.getvalue())
