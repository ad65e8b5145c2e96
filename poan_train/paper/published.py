"""Numbers that papers publish, to stand beside what is measured here.

Source: the tables of POAN's paper (ICIP 2021; IXI, 240x240x96, bicubic down-sampling, 1000 epochs;
the ablations 400) and SERAN's own (CVPR 2021). PSNR in dB and SSIM. They are never used to make a
number of ours, only to calibrate conventions (:mod:`poan_train.paper.calibrate`) and to compare.
"""

from collections.abc import Mapping
from typing import TypeAlias

Score: TypeAlias = tuple[float, float]
"""(PSNR, SSIM)."""

NAMES = ("bicubic", "nlm", "srcnn", "vdsr", "rdn", "edsr", "csn", "poan", "poan+")

_ROWS = {
    ("PD", 2): "35.04/.9664 37.26/.9773 38.96/.9861 39.97/.9861 40.31/.9870 39.87/.9857 "
    "41.28/.9895 41.59/.9901 41.92/.9906",
    ("PD", 3): "31.20/.9230 32.81/.9436 33.60/.9516 34.66/.9599 35.08/.9628 34.39/.9678 "
    "35.87/.9693 36.46/.9731 36.65/.9739",
    ("PD", 4): "29.13/.8799 30.27/.9044 31.10/.9181 32.09/.9311 32.73/.9387 31.80/.9284 "
    "33.40/.9486 33.94/.9546 34.18/.9563",
    ("T1", 2): "33.80/.9525 35.80/.9685 37.12/.9761 37.67/.9783 37.95/.9795 37.56/.9774 "
    "38.27/.9810 38.79/.9827 38.86/.9829",
    ("T1", 3): "30.15/.8900 31.74/.9216 32.17/.9276 32.91/.9378 33.31/.9430 32.76/.9347 "
    "33.53/.9464 34.22/.9530 34.34/.9538",
    ("T1", 4): "28.28/.8312 29.31/.8655 29.90/.8796 30.57/.8932 31.05/.9042 30.46/.8902 "
    "31.23/.9093 32.06/.9231 32.21/.9250",
    ("T2", 2): "33.44/.9589 35.58/.9722 37.32/.9796 38.65/.9836 38.75/.9838 38.28/.9824 "
    "39.71/.9863 40.43/.9877 40.56/.9879",
    ("T2", 3): "29.80/.9093 31.28/.9330 32.20/.9440 33.47/.9559 33.91/.9591 33.15/.9528 "
    "34.64/.9647 35.25/.9686 35.43/.9694",
    ("T2", 4): "27.86/.8611 28.85/.8875 29.69/.9052 30.79/.9240 31.45/.9324 30.52/.9198 "
    "32.05/.9413 32.60/.9477 32.83/.9495",
}


def _read(row: str) -> dict[str, Score]:
    pairs = [score.split("/") for score in row.split()]
    return {name: (float(p), float(s)) for name, (p, s) in zip(NAMES, pairs, strict=True)}


TABLE1: Mapping[tuple[str, int], Mapping[str, Score]] = {k: _read(v) for k, v in _ROWS.items()}
"""(contrast, scale) -> network -> score. (PD x3 EDSR's SSIM looks like a misprint.)"""

SERAN: Mapping[tuple[str, int], Score] = {("T2", 2): (40.30, 0.9874), ("T2", 4): (32.62, 0.9472)}

TABLE2: Mapping[str, float] = dict(
    zip("ABCDEFGH", (36.45, 37.72, 37.67, 38.31, 38.94, 39.35, 40.21, 41.53), strict=True)
)
"""PSNR, PD x2. Row A lies below SRCNN: read the order, not the distances."""

TABLE3: Mapping[str, float] = dict(zip("ABCD", (26.71, 28.94, 30.37, 31.62), strict=True))
"""PSNR, T1 x4. Row A lies below bicubic: read the order, not the distances."""


def base_name(arch: str) -> str:
    """The published name of a network of ours: its size left out, the + of an ensemble kept.

    >>> base_name("poan-lite+"), base_name("edsr-baseline")
    ('poan+', 'edsr')
    """
    name = arch.removesuffix("+")
    name = name.removesuffix("-lite").removesuffix("-baseline")
    return f"{name}+" if arch.endswith("+") else name


def published(arch: str, contrast: str, scale: int) -> Score | None:
    """The published score of ``arch`` at its papers' size, or None."""
    if arch == "seran":
        return SERAN.get((contrast, scale))
    return TABLE1.get((contrast, scale), {}).get(arch)
