"""What ``make demo`` shows: a phantom with known truth, and a scan that nibabel ships.

The phantom is drawn at four times the HR sampling and averaged down, so that its HR slices are
what an ideal scanner would see. LR is acquired as a scanner does it: the centre of k-space,
complex noise, the magnitude, whole numbers.
"""

import argparse
import json
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
from poan_runtime.geometry import Affine, upscaled_affine
from poan_runtime.images.volume import read_volume
from poan_runtime.intensity import decibels
from poan_runtime.report.preview import write_preview
from poan_runtime.signal.kspace import to_native
from poan_runtime.signal.measured import up

Volume = NDArray[np.float32]

SIDE, SLICES, SUPERSAMPLING = 192, 8, 4
MODEL = "mr_x2"
SCALE = 2
SNR, SEED = 30.0, 7
"""Median tissue over the noise of each channel, and the noise's seed."""
COARSE: Affine = np.diag([2.0, 2.0, 5.0, 1.0])
FINE: Affine = upscaled_affine(COARSE, SCALE, 2, "centre")


def phantom() -> Volume:
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


def acquired(truth: Volume) -> NDArray[np.int16]:
    """LR (x, y, z) of HR as a scanner gives it: fewer lines of k-space, Rician noise, rounding."""
    lr = to_native(np.moveaxis(truth, 2, 0), (SIDE // SCALE, SIDE // SCALE))
    sigma = np.median(lr[lr > 0.05 * lr.max()]) / SNR
    real, imaginary = np.random.default_rng(SEED).normal(0, sigma, (2, *lr.shape))
    magnitude: Volume = np.rint(np.hypot(lr + real, imaginary))
    return np.moveaxis(magnitude, 0, 2).astype(np.int16)


def bicubic(lr: Volume) -> Volume:
    """Every slice of (x, y, z) made SCALE times finer by Pillow's bicubic."""
    size = (SCALE * lr.shape[0], SCALE * lr.shape[1])
    slices = [Image.fromarray(s).resize(size, Image.Resampling.BICUBIC) for s in lr.T]
    return np.stack([np.asarray(s) for s in slices]).T


def sinc(lr: Volume) -> Volume:
    """Every slice of (x, y, z) zero-filled in k-space, as a scanner would interpolate it."""
    return np.moveaxis(up(np.moveaxis(lr, 2, 0), SCALE), 0, 2)


def psnr(truth: Volume, estimate: Volume) -> float:
    """PSNR in dB inside the phantom, where the truth is not zero; its maximum is the peak."""
    error = np.mean(np.square((truth - estimate)[truth > 0], dtype=np.float64))
    return float(decibels(float(truth.max()), float(error)))


def _save(volume: NDArray[Any], affine: Affine, path: Path) -> None:
    image = nibabel.Nifti1Image(volume, affine)  # type: ignore[no-untyped-call]
    nibabel.save(image, path)


def _upscaled(model: str, scan: Path, out: Path, name: str) -> int:
    """Run `poan-run` as a user would, with picture and report; its exit status."""
    outputs = ["-o", f"{name}_desc-sr.nii.gz", "--preview", f"{name}.png"]
    outputs += ["--report", f"{name}.json"]
    named = [a if a.startswith("-") else str(out / a) for a in outputs]
    return cli.main([model, str(scan), *named, "--overwrite"])


def quality(model: str, truth: Volume, lr: Volume, sr: Volume) -> str:
    """One line: PSNR of bicubic, sinc and poan, and the gain over the better of the two."""
    known = {"bicubic": psnr(truth, bicubic(lr)), "sinc": psnr(truth, sinc(lr))}
    ours = psnr(truth, sr)
    figures = ", ".join(f"{name} {db:.2f} dB" for name, db in [*known.items(), ("poan", ours)])
    better = max(known, key=lambda name: known[name])
    return (
        f"phantom, {model}: {figures} PSNR against the known truth, "
        f"gain {ours - known[better]:+.2f} dB over {better}"
    )


def faithfulness(report: Path, lr: Volume) -> str:
    """One line: how much of what was measured the network changed, beside the noise."""
    (scan,) = json.loads(report.read_text("utf-8"))["scans"]
    found = scan["faithfulness"]
    rms = float(np.sqrt(np.mean(np.square(lr, dtype=np.float64))))
    return (
        f"phantom, faithfulness: {found['changed_relative']:.2%} of what was measured was changed, "
        f"its noise is {found['noise_sigma'] / rms:.2%}"
    )


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
    _save(acquired(truth), COARSE, out / "phantom.nii.gz")
    _save(truth, FINE, out / "phantom_truth.nii.gz")
    scan = Path(nibabel.__file__).parent / "tests/data/example4d.nii.gz"
    for name, source in (("phantom", out / "phantom.nii.gz"), ("scan", scan)):
        if code := _upscaled(args.model, source, out, name):
            return code

    lr = read_volume(out / "phantom.nii.gz").data
    sr = read_volume(out / "phantom_desc-sr.nii.gz").data
    middle = SLICES // 2
    coarse, fine, known = (volume[:, :, middle] for volume in (lr, sr, truth))
    write_preview(out / "phantom.png", coarse, fine, FINE, 2, truth=known)
    lines = [quality(args.model, truth, lr, sr), faithfulness(out / "phantom.json", lr)]
    for name, title in (("phantom", "phantom"), ("scan", "example4d.nii.gz of nibabel")):
        paths = (out / f"{name}{end}" for end in ("_desc-sr.nii.gz", ".png", ".json"))
        lines.append(f"{title}: " + ", ".join(str(path) for path in paths))
    lines.append(f"{time.perf_counter() - started:.1f} s")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
