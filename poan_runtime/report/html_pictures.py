"""What the page draws by itself: crops of a slice, a histogram, a spectrum with its native band."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from poan_runtime.signal.kspace import resample

Picture = NDArray[np.float32]
Curve = NDArray[np.float64]

CROP_SIDE = 280
"""Pixels on the page along the longer side of a crop."""
BINS = 64
WIDE, HIGH = 420, 220
COLOURS = ("#888", "#2a7ae2", "#2e9e5b", "#d9582b")


def versions(lr: Picture, sr: Picture, grid: str) -> dict[str, Picture]:
    """One slice (h, w) at the size of SR in every way; sinc knows the centre grid alone."""
    size = sr.shape[1], sr.shape[0]
    image = Image.fromarray(np.ascontiguousarray(lr, np.float32))
    found = {
        "input, nearest": np.asarray(image.resize(size, Image.Resampling.NEAREST)),
        "bicubic": np.asarray(image.resize(size, Image.Resampling.BICUBIC)),
    }
    if grid == "centre":
        found["sinc (zero-filled)"] = resample(lr, sr.shape)
    return found | {"super-resolved": sr}


def crop_png(picture: Picture, window: tuple[float, float]) -> str:
    """The middle third of a slice, enlarged, as a data URL."""
    h, w = picture.shape
    part = picture[h // 3 : max(h // 3 + 1, 2 * h // 3), w // 3 : max(w // 3 + 1, 2 * w // 3)]
    low, high = window
    grey = (np.clip((part - low) / (high - low), 0, 1) * 255).round().astype(np.uint8)
    zoom = CROP_SIDE / max(grey.shape)
    size = max(1, round(grey.shape[1] * zoom)), max(1, round(grey.shape[0] * zoom))
    out = io.BytesIO()
    Image.fromarray(grey).resize(size, Image.Resampling.NEAREST).save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def histogram(volumes: dict[str, NDArray[np.uint8]]) -> str:
    """Shares of voxels by grey level, background left out, as SVG."""
    curves: dict[str, Curve] = {}
    for name, volume in volumes.items():
        counts = np.bincount(volume.ravel() >> 2, minlength=BINS)[1:].astype(np.float64)
        curves[name] = counts / max(1.0, counts.sum())
    return plot(curves, "grey level, dark to bright", "share of voxels", ())


def spectrum(pictures: dict[str, Picture], marks: Sequence[tuple[float, str]]) -> str:
    """Mean power (decades) against frequency as a share of SR's Nyquist, as SVG."""
    curves = {name: radial_power(p) for name, p in pictures.items() if "nearest" not in name}
    return plot(curves, "share of the output's Nyquist", "power, decades", marks)


def radial_power(picture: Picture) -> Curve:
    """log10 of the mean power in rings of equal width up to Nyquist.

    >>> flat = radial_power(np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32))
    >>> bool(np.ptp(flat[4:]) < 0.5)  # white noise is flat
    True
    """
    h, w = picture.shape
    window = np.outer(np.hanning(h + 2)[1:-1], np.hanning(w + 2)[1:-1])
    power = np.abs(np.fft.rfft2(picture * window)) ** 2
    radius = np.hypot(np.fft.fftfreq(h)[:, None] * 2, np.fft.rfftfreq(w)[None] * 2)
    rings = max(1, min(BINS, min(h, w) // 2))  # none is empty
    ring = np.minimum((radius * rings).astype(int), rings)
    total = np.bincount(ring.ravel(), power.ravel(), rings + 1)[:rings]
    count = np.bincount(ring.ravel(), minlength=rings + 1)[:rings]
    filled = np.log10(total / count + 1e-12 * max(float(power.max()), 1e-30))
    return np.asarray(filled, np.float64)


def plot(
    curves: dict[str, Curve], across: str, upwards: str, marks: Sequence[tuple[float, str]]
) -> str:
    """Curves over 0 to 1 as SVG, with vertical marks (place, word)."""
    values = np.concatenate([*curves.values()])
    low, high = float(values.min()), float(values.max())
    reach = (high - low) or 1.0
    parts = [
        f'<svg viewBox="0 0 {WIDE} {HIGH + 58}" width="{WIDE}" role="img" aria-label="{upwards}">',
        f'<rect width="{WIDE}" height="{HIGH}" fill="none" stroke="#999"/>',
    ]
    for colour, curve in zip(COLOURS, curves.values(), strict=False):
        x = np.linspace(0, WIDE, len(curve))
        y = HIGH - 4 - (HIGH - 8) * (curve - low) / reach
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
    for n, (place, word) in enumerate(marks):
        x0 = place * WIDE
        anchor = "end" if place > 0.6 else "start"
        parts.append(f'<path d="M{x0:.1f} 0V{HIGH}" stroke="#c33" stroke-dasharray="4 3"/>')
        parts.append(
            f'<text x="{x0 + (-4 if anchor == "end" else 4):.1f}" y="{14 + 14 * n}" '
            f'text-anchor="{anchor}" font-size="11" fill="#c33">{word}</text>'
        )
    parts.append(f'<text x="{WIDE / 2}" y="{HIGH + 16}" text-anchor="middle">{across}</text>')
    step = WIDE / max(1, len(curves))
    for n, (colour, name) in enumerate(zip(COLOURS, curves, strict=False)):
        parts.append(
            f'<text x="{n * step + 4:.0f}" y="{HIGH + 40}" fill="{colour}">&#9644; {name}</text>'
        )
    return "".join([*parts, "</svg>"])
