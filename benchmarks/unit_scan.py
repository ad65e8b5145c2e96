"""The unit of work: a 240x240x96 scan and its LR, as files.

Made from a real volume: its slices at their true resolution, cropped to 240x240 about the centre
(or padded with zeros), and repeated back and forth until there are 96. Without a volume a phantom
of ellipses with noise takes its place. Voxels are int16 with the maximum at 16,000, so that
rounding is 3e-5 of the range, below the differences that are asked for.
"""

from pathlib import Path

import nibabel
import numpy as np

from poan_train.data import hr_slices
from poan_train.degrade import Array, Degradation, degrade
from poan_train.subjects import Source

SHAPE = (96, 240, 240)
"""Slices, rows, columns."""
TOP = 16_000
HR_SPACING_MM, SLICE_SPACING_MM = 0.9375, 3.0


def hr_volume(scan: Path | None, shape: tuple[int, int, int] = SHAPE) -> Array:
    """HR slices (S, H, W) float32 of whole numbers from 0 to `TOP`."""
    if scan is None:
        slices = phantom(shape)
    else:
        slices, _ = hr_slices(Source(path=scan, contrast="any", subject="any"))
    slices = fit(slices, shape)
    return np.rint(np.clip(slices, 0, None) * (TOP / slices.max())).astype(np.float32)


def fit(slices: Array, shape: tuple[int, int, int]) -> Array:
    """Slices cropped or zero-padded about the centre, in turn forwards and backwards.

    >>> fit(np.arange(3.0)[:, None, None], (7, 1, 1)).ravel().tolist()
    [0.0, 1.0, 2.0, 2.0, 1.0, 0.0, 0.0]
    """
    order = [*range(len(slices)), *reversed(range(len(slices)))]
    out = slices[[order[i % len(order)] for i in range(shape[0])]]
    for axis in (1, 2):
        missing = shape[axis] - out.shape[axis]
        padding = [(0, 0)] * 3
        padding[axis] = (max(missing, 0) // 2, max(missing, 0) - max(missing, 0) // 2)
        out = np.pad(out, padding)
        start = max(-missing, 0) // 2
        out = np.take(out, range(start, start + shape[axis]), axis)
    return np.asarray(out)


def phantom(shape: tuple[int, int, int], seed: int = 0) -> Array:
    """A head of nested ellipses with fine texture and noise, on exact zero."""
    rng = np.random.default_rng(seed)
    depth, height, width = shape
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    texture = np.sin(40 * x) * np.sin(33 * y)
    slices = np.zeros(shape, np.float32)
    for index in range(depth):
        size = 0.55 + 0.3 * np.sin(np.pi * (index + 0.5) / depth)
        radius = np.hypot(x / (0.8 * size), y / size)
        values = np.where(radius < 1, 0.8, 0.0)
        values = np.where(radius < 0.92, 0.35 + 0.1 * texture, values)
        values = np.where(np.hypot((x - 0.1) / 0.2, y / 0.3) < size, 0.9, values)
        noise = rng.normal(scale=0.02, size=values.shape)
        slices[index] = np.where(radius < 1, np.clip(values + noise, 0, None), 0)
    return slices


def spread(slices: Array, count: int | None) -> Array:
    """``count`` slices spread evenly through the scan; all of them for None."""
    if count is None or count >= len(slices):
        return slices
    return slices[np.linspace(0, len(slices) - 1, count).round().astype(int)]


def write_pair(folder: Path, hr: Array, scale: int, method: Degradation) -> Path:
    """Write ``hr.npy`` and ``lr.nii.gz`` into ``folder``; the path of the LR scan.

    The LR is rounded to whole numbers, as a scanner stores it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lr = np.rint(np.clip(degrade(hr, scale, method), 0, 32767)).astype(np.int16)
    spacing = HR_SPACING_MM * scale
    affine = np.diag([spacing, spacing, max(SLICE_SPACING_MM, 1.2 * spacing), 1.0])
    # (S, h, w) -> (h, w, S): slices across the third axis, as most scanners write them
    nibabel.save(nibabel.Nifti1Image(np.moveaxis(lr, 0, 2), affine), folder / "lr.nii.gz")
    np.save(folder / "hr.npy", hr.astype(np.float32))
    return folder / "lr.nii.gz"
