"""Is a scanner's zero-filling found, and is super-resolution from the native matrix better?

Each validation volume is first brought to its true resolution (HR, N rows or columns). What a
scanner would hand over is made of it: the spectrum truncated to N / 2, with complex noise of SNR
30 or without (tissue median / sigma), zero-filled to N / 2 / c, magnitude. Reported: the cutoffs
found beside c, none wanted on axes left full; and PSNR within the head at HR's matrix, all brought
there by cropping or filling the spectrum, of sinc, and of what `poan-run` gives of the slices that
are super-resolved: with `--native off`, with `--native on` (the native matrix alone) and with the
default (`auto`: the mean of both).

    python -m benchmarks.native VALIDATION_FOLDER              # cutoffs alone: a minute
    python -m benchmarks.native VALIDATION_FOLDER --slices 4   # and an x2 model
"""

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes, gaussian_filter

from benchmarks import record
from poan_runtime.geometry import slice_axis
from poan_runtime.images.volume import Volume, read_volume
from poan_runtime.intensity import decibels, intensity_unit
from poan_runtime.network import Network, Settings, load_network
from poan_runtime.signal.kspace import resample, to_native
from poan_runtime.signal.native import Native, find_native, sampled
from poan_runtime.super_resolve import upscale

Slices = NDArray[np.float32]
Pair = tuple[float | None, float | None]

SHARES = (0.6, 0.7, 0.8)
SNRS = (None, 30.0)
TOLERANCE = 0.03
RESULT = record.RESULTS / "native" / "native.json"


@dataclass(frozen=True, kw_only=True)
class Case:
    """Which share of each axis of the handed-over matrix is measured; noise."""

    shares: Pair
    snr: float | None

    def __str__(self) -> str:
        shares = " ".join("none" if c is None else f"{c:.1f}" for c in self.shares)
        return f"{shares} {'no noise' if self.snr is None else f'SNR {self.snr:.0f}'}"


def cases() -> Iterator[Case]:
    """Both axes, each alone, and neither; without and with noise."""
    pairs: list[Pair] = [(None, None)]
    for c in SHARES:
        pairs += [(c, c), (c, None), (None, c)]
    for shares, snr in itertools.product(pairs, SNRS):
        yield Case(shares=shares, snr=snr)


def true_resolution(path: Path) -> tuple[Slices, Native]:
    """HR (n, H, W) of the slices that are looked at, H and W even; and what was undone."""
    volume = read_volume(path)
    axis = slice_axis(volume.affine, volume.data.shape)
    slices = np.moveaxis(volume.data, axis, 0)
    slices = np.nan_to_num(slices[sampled(len(slices))], posinf=0.0, neginf=0.0)
    found = find_native(slices)
    rows, columns = (n // 2 * 2 for n in found.native)
    return np.maximum(to_native(slices, (rows, columns)), 0), found


def handed_over(hr: Slices, case: Case, seed: int) -> tuple[Slices, Pair]:
    """What a scanner would give of HR, and the true cutoffs of its matrix."""
    half = hr.shape[1] // 2, hr.shape[2] // 2
    rows, columns = (
        n if c is None else round(n / c) for n, c in zip(half, case.shares, strict=True)
    )
    measured = resample(hr, half)
    sigma = 0.0 if case.snr is None else tissue(measured) / case.snr
    real, imaginary = np.random.default_rng(seed).normal(0, sigma, (2, *measured.shape))
    matrix = rows, columns
    scan = np.hypot(resample(measured + real, matrix), resample(imaginary, matrix))
    truth: Pair = (
        None if rows == half[0] else half[0] / rows,
        None if columns == half[1] else half[1] / columns,
    )
    return scan.astype(np.float32), truth


def tissue(slices: Slices) -> float:
    """Median of the voxels above a twentieth of the intensity unit."""
    return float(np.median(slices[slices > 0.05 * intensity_unit(slices)]))


def head(hr: Slices) -> NDArray[np.bool_]:
    """Smoothed by two voxels above a quarter of the tissue, or enclosed by such voxels."""
    least = 0.25 * tissue(hr)
    return np.stack([binary_fill_holes(gaussian_filter(x, 2.0) > least) for x in hr])


def psnr_within(hr: Slices, estimate: Slices, mask: NDArray[np.bool_]) -> float:
    """PSNR in dB over all voxels of the mask; the peak is the volume's maximum."""
    error = np.mean(np.square((hr - estimate)[mask], dtype=np.float64))
    return float(decibels(float(hr.max()), float(error)))


def right(found: float | None, true: float | None) -> bool:
    """Whether an axis's cutoff is found within the tolerance, or none where there is none."""
    if found is None or true is None:
        return found is true
    return abs(found - true) <= TOLERANCE


def super_resolved(
    slices: Slices, network: Network, native: Literal["auto", "on", "off"] = "off"
) -> Slices:
    """SR (n, H, W) of slices (n, h, w) by the library, twice as fine as the matrix it starts from.

    Each call finds the native matrix of these slices anew.
    """
    affine = np.diag([1.0, 1.0, 5.0, 1.0])
    volume = Volume(data=np.moveaxis(slices, 0, 2), affine=affine)
    settings = Settings(axis=2, native=native)
    return np.moveaxis(upscale(volume, network, settings).data, 2, 0)


def quality(hr: Slices, scan: Slices, network: Network) -> dict[str, float]:
    """PSNR (dB) within the head of sinc, and of the network by ``--native``."""
    estimates = {
        "sinc": scan,
        "zero_filled": super_resolved(scan, network),
        "native": super_resolved(scan, network, "on"),
        "both": super_resolved(scan, network, "auto"),
    }
    mask = head(hr)
    matrix = (hr.shape[1], hr.shape[2])
    return {name: psnr_within(hr, resample(x, matrix), mask) for name, x in estimates.items()}


def measure(path: Path, slices: int, network: Network | None) -> list[dict[str, Any]]:
    """A row for each case of one volume."""
    hr, own = true_resolution(path)
    kept = np.linspace(0, len(hr) - 1, slices).round().astype(int)
    rows = []
    for seed, case in enumerate(cases()):
        scan, truth = handed_over(hr, case, seed)
        found = find_native(iter(scan))
        row: dict[str, Any] = {
            "volume": path.name.split(".")[0],
            "own_cutoffs": own.cutoffs,
            "hr": hr.shape,
            "case": str(case),
            "true": truth,
            "found": found.cutoffs,
            "right": [right(a, b) for a, b in zip(found.cutoffs, truth, strict=True)],
        }
        if network is not None and found.is_zero_filled:
            row["psnr_db"] = quality(hr[kept], scan[kept], network)
        rows.append(row)
        print(line(row), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    """One row as text."""

    def pair(cutoffs: Sequence[float | None]) -> str:
        return " ".join("  none" if c is None else f"{c:6.3f}" for c in cutoffs)

    text = f"{row['volume']:32} {row['case']:18} {pair(row['true'])}  {pair(row['found'])}"
    if "psnr_db" in row:
        text += "  " + " ".join(f"{value:6.2f}" for value in row["psnr_db"].values())
    return text + ("" if all(row["right"]) else "  WRONG")


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Axes right, of those zero-filled and of those full; how often native is the better."""
    axes = [
        (true is not None, ok)
        for row in rows
        for true, ok in zip(row["true"], row["right"], strict=True)
    ]
    gains, alone = (
        [row["psnr_db"][name] - row["psnr_db"]["zero_filled"] for row in rows if "psnr_db" in row]
        for name in ("both", "native")
    )
    return {
        "zero_filled_axes": sum(filled for filled, _ in axes),
        "zero_filled_right": sum(filled and ok for filled, ok in axes),
        "full_axes": sum(not filled for filled, _ in axes),
        "full_right": sum(ok and not filled for filled, ok in axes),
        "cases_with_network": len(gains),
        "default_better": sum(gain > 0 for gain in gains),
        "gain_db": [min(gains), record.median(gains), max(gains)] if gains else None,
        "native_alone_better": sum(gain > 0 for gain in alone),
        "native_alone_gain_db": [min(alone), record.median(alone), max(alone)] if alone else None,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="validation volumes, NIfTI")
    parser.add_argument(
        "--slices", type=int, default=0, help="super-resolve so many slices of each (default 0)"
    )
    parser.add_argument("--model", default="mr_x2", help="x2 model (default mr_x2)")
    parser.add_argument("--json", type=Path, default=RESULT)
    args = parser.parse_args(argv)
    network = load_network(args.model) if args.slices else None
    rows: list[dict[str, Any]] = []
    print("volume, case, true cutoffs, found; PSNR: sinc, zero-filled, native, both, kept")
    paths = sorted(args.folder.glob("*.nii*"))
    for path in paths:
        rows += measure(path, args.slices, network)
    total = summary(rows)
    print(total)
    document = {
        "machine": record.machine(),
        "commit": record.commit(),
        "model": args.model if network else None,
        "slices_super_resolved": args.slices,
        "volumes": record.hashes(paths),
        "summary": total,
        "rows": rows,
    }
    record.write(args.json, document)


if __name__ == "__main__":
    main()
