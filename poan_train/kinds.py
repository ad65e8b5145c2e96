"""A network on the five fixed kinds of LR, beside bicubic and sinc, within the head.

The kinds are those of :data:`poan_train.acquire.KINDS`. ``sinc`` is zero-filling in k-space: what a
scanner offers without any network. Gains are over the better of bicubic and sinc.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.ndimage import binary_fill_holes, gaussian_filter

from poan_runtime.commands.say import printable
from poan_runtime.intensity import intensity_unit
from poan_runtime.signal.measured import difference, up
from poan_train.acquire import KIND_SEED, KINDS, acquire, tissue_of
from poan_train.data import Pair
from poan_train.degrade import Array, degrade
from poan_train.metrics import psnr_within, ssim_within

RIVALS = ("bicubic", "sinc")
METHODS = (*RIVALS, "sr")
TISSUE = 0.25
"""Share of the median tissue from which a smoothed voxel belongs to the head."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One volume in one kind: LR (S, h, w), HR (S, s h, s w) in LR's intensity unit."""

    kind: str
    lr: Array
    hr: Array
    mask: Array
    """(S, s h, s w), True within the head."""


def case_of(pair: Pair, scale: int, kind: str, every: int = 1) -> Case:
    """Every N-th slice of ``pair``, made with the degradation ``truncated``, in one kind.

    The intensity unit is that of the LR that was made, noise included, as the runtime would find.
    """
    hr, band = np.asarray(pair.hr[::every]), np.asarray(pair.lr[::every])
    if kind == "bicubic":
        lr = degrade(hr, scale, "bicubic")
    else:
        lr = acquire(band, KINDS[kind], pair.tissue, np.random.default_rng(KIND_SEED))
    unit = np.float32(intensity_unit(lr))
    return Case(kind=kind, lr=lr / unit, hr=hr / unit, mask=head(hr))


def head(hr: Array) -> Array:
    """Which voxels of slices (S, H, W), in the intensity unit, lie within the head.

    Each slice is smoothed by a Gaussian of two voxels; a voxel belongs to the head where that
    exceeds a quarter of the volume's median tissue (voxels above 5 % of the intensity unit), or
    where such voxels enclose it. So air outside, noisy or not, counts for nothing, and ventricles
    and sinuses count. Works for other organs as well.
    """
    least = TISSUE * tissue_of(hr)
    return np.stack([binary_fill_holes(gaussian_filter(x, 2.0) > least) for x in hr])


SHARES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
"""Shares of the measured band that are put back on trial."""


def gains_kept(case: Case, estimates: Mapping[str, Array], scale: int) -> dict[str, float]:
    """Gain in dB of ``sr`` over the better rival with each of `SHARES` of LR's band put back."""
    best = max(psnr_within(case.hr, estimates[rival], case.mask) for rival in RIVALS)
    sr, lacking = estimates["sr"], up(difference(case.lr, estimates["sr"], scale), scale)
    return {
        f"{share:g}": psnr_within(case.hr, sr + np.float32(share) * lacking, case.mask) - best
        for share in SHARES
    }


def score(case: Case, estimates: Mapping[str, Array]) -> dict[str, Any]:
    """PSNR and SSIM within the head of each estimate (S, H, W); gains of ``sr``."""
    row: dict[str, Any] = {"kind": case.kind, "slices": len(case.lr)}
    for name, estimate in estimates.items():
        row[name] = {
            "psnr": psnr_within(case.hr, estimate, case.mask),
            "ssim": ssim_within(case.hr, estimate, case.mask),
        }
    for measure in ("psnr", "ssim"):
        best = max(row[m][measure] for m in RIVALS)
        row[f"gain_{measure}"] = row["sr"][measure] - best
    return row


def summaries(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each kind the mean of every figure over volumes, and the lowest gain in dB."""
    out = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [row for row in rows if row["kind"] == kind]
        mean: dict[str, Any] = {"volume": "mean", "kind": kind}
        for method in METHODS:
            mean[method] = {
                m: float(np.mean([row[method][m] for row in own])) for m in ("psnr", "ssim")
            }
        for gain in (g for g in own[0] if g.startswith("gain_")):
            mean[gain] = float(np.mean([row[gain] for row in own]))
        mean["lowest_gain_psnr"] = min(row["gain_psnr"] for row in own)
        out.append(mean)
    return out


def kinds_table(rows: Sequence[dict[str, Any]]) -> str:
    """Plain text: PSNR (dB) / SSIM within the head, gain over the better of bicubic and sinc."""
    heads = " ".join(f"{name:>14}" for name in ("bicubic", "sinc", "SR"))
    lines = ["PSNR dB / SSIM within the head; gain over the better of bicubic and sinc"]
    lines += [f"{'volume':40} {'kind':10} {heads}  gain dB     SSIM"]
    for row in rows:
        cells = [f"{row[m]['psnr']:7.2f}/{row[m]['ssim']:.4f}" for m in METHODS]
        lines.append(
            f"{printable(row['volume'])[:40]:40} {row['kind']:10} {' '.join(cells)} "
            f"{row['gain_psnr']:+8.2f} {row['gain_ssim']:+8.4f}"
        )
    return "\n".join(lines)
