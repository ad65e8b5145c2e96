"""What ``make demo`` shows: a phantom with known truth, and a scan that nibabel ships.

The phantom is drawn at four times the HR sampling and averaged down, so that its HR slices are
what an ideal scanner would see; its LR slices are made by antialiased bicubic down-sampling, the
degradation that the shipped models were trained for.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from poan_runtime.commands import run as cli
from poan_runtime.geometry import upscaled_affine
from poan_runtime.images.volume import read_volume
from poan_runtime.intensity import decibels

SIDE, SLICES, SUPERSAMPLING = 192, 8, 4
MODEL = "t2_x2"


def phantom() -> NDArray[np.float32]:
    """HR phantom (SIDE, SIDE, SLICES): a head with folded cortex, ventricles and small lesions."""
    n = SIDE * SUPERSAMPLING
    x, y = (np.mgrid[:n, :n].astype(np.float32) + 0.5) * (2 / n) - 1
    slices = []
    for z in np.linspace(-0.35, 0.35, SLICES):
        angle = np.arctan2(y, x)
        radius = np.hypot(x / 0.72, y / 0.88) / np.sqrt(1 - z**2)
        fold = 0.035 * np.sin(23 * angle + 9 * z) + 0.02 * np.sin(41 * angle - 5 * z)
        image = np.where(radius < 1.0, 0.35, 0.0)  # scalp
        image = np.where(radius < 0.94, 0.05, image)  # skull
        image = np.where(radius < 0.88, 0.95, image)  # fluid
        image = np.where(radius + fold < 0.82, 0.55, image)  # grey matter
        image = np.where(radius + 2.2 * fold < 0.70, 0.35, image)  # white matter
        for side in (-1, 1):
            horn = np.hypot((x - side * (0.13 + 0.1 * y**2)) / 0.07, (y + 0.05) / 0.30)
            image = np.where(horn < 1 - abs(z), 1.0, image)  # ventricles
        for k in range(9):
            cx, cy = 0.42 * np.cos(2.4 * k + z), 0.5 * np.sin(2.4 * k + z)
            image = np.where(np.hypot(x - cx, y - cy) < 0.012 + 0.003 * k, 0.85, image)
        blocks = image.reshape(SIDE, SUPERSAMPLING, SIDE, SUPERSAMPLING)
        slices.append(blocks.mean(axis=(1, 3)))
    return np.stack(slices, axis=-1).astype(np.float32)


def resized(volume: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """Every slice of (x, y, z) resized in-plane by Pillow's bicubic, antialiased when smaller."""
    size = (round(volume.shape[0] * factor), round(volume.shape[1] * factor))
    slices = [Image.fromarray(s).resize(size, Image.Resampling.BICUBIC) for s in volume.T]
    return np.stack([np.asarray(s) for s in slices]).T


def _save(volume: NDArray[Any], affine: NDArray[np.float64], path: Path) -> None:
    image = nibabel.Nifti1Image(volume, affine)  # type: ignore[no-untyped-call]
    nibabel.save(image, path)


def psnr(truth: NDArray[np.float32], estimate: NDArray[np.float32]) -> float:
    """PSNR in dB with the truth's maximum as peak."""
    error = float(np.mean((truth.astype(np.float64) - estimate) ** 2))
    return float(decibels(float(truth.max()), error))


def main(argv: Sequence[str] | None = None) -> int:
    """Write the demo's files below ``--out`` and print what they show."""
    p = argparse.ArgumentParser(prog="python -m poan_runtime.commands.demo", description=__doc__)
    p.add_argument("--out", type=Path, default=Path("demo"))
    p.add_argument("--model", default=MODEL)
    args = p.parse_args(argv)
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()

    truth = 1000 * phantom()
    coarse = resized(truth, 1 / 2)
    lr = np.round(np.clip(coarse, 0, None)).astype(np.int16)
    _save(lr, np.diag([2.0, 2.0, 5.0, 1.0]), out / "phantom.nii.gz")
    fine = upscaled_affine(np.diag([2.0, 2.0, 5.0, 1.0]), 2, 2, "centre")
    _save(truth, fine, out / "phantom_truth.nii.gz")
    scan = Path(nibabel.__file__).parent / "tests/data/example4d.nii.gz"

    for name, source in (("phantom", out / "phantom.nii.gz"), ("scan", scan)):
        outputs = ["-o", f"{name}_desc-sr.nii.gz", "--preview", f"{name}.png"]
        outputs += ["--report", f"{name}.json"]
        named = [a if a.startswith("-") else str(out / a) for a in outputs]
        code = cli.main([args.model, str(source), *named, "--overwrite"])
        if code:
            return code
    sr = read_volume(out / "phantom_desc-sr.nii.gz").data
    interpolated, ours = psnr(truth, resized(lr.astype(np.float32), 2)), psnr(truth, sr)
    lines = [
        f"phantom, {args.model}: bicubic {interpolated:.2f} dB, poan {ours:.2f} dB, "
        f"gain {ours - interpolated:+.2f} dB PSNR against the known truth",
    ]
    for name, title in (("phantom", "phantom"), ("scan", "example4d.nii.gz of nibabel")):
        paths = (out / f"{name}{end}" for end in ("_desc-sr.nii.gz", ".png", ".json"))
        lines.append(f"{title}: " + ", ".join(str(path) for path in paths))
    lines.append(f"{time.perf_counter() - started:.1f} s")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
