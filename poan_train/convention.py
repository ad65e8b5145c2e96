"""The conventions that papers leave unsaid, as options of poan-eval and of the paper's tables.

``poan-train --check-ixi`` finds those that reproduce a published bicubic row and prints them as
these options.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

PSNRS = {
    "volume-peak": "psnr_volume_peak",
    "slice-peak": "psnr_slice_peak",
    "whole-volume": "psnr_whole_volume",
}
"""Word -> measure of `poan_train.evaluate.measure`. The first two are means over slices."""
SSIMS = {"volume-peak": "ssim_volume_peak", "slice-peak": "ssim_slice_peak"}


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How a volume becomes slices, where papers differ. The defaults are ours."""

    zero_filling: Literal["undo", "keep"] = "undo"
    slices: Literal["foreground", "all"] = "foreground"
    round_lr: bool = False
    """LR rounded to integers in the file's units."""


OURS = Preparation()


def add_preparation(p: argparse._ActionsContainer) -> None:
    """``--zero-filling``, ``--slices`` and ``--round-lr``."""
    p.add_argument(
        "--zero-filling",
        choices=("undo", "keep"),
        default="undo",
        help="undo a scanner's zero-filling before a slice counts as HR (default), or keep it",
    )
    p.add_argument(
        "--slices",
        choices=("foreground", "all"),
        default="foreground",
        help="leave out slices that show nothing (default), or none",
    )
    p.add_argument("--round-lr", action="store_true", help="LR in integers, in the file's units")


def add_measures(p: argparse._ActionsContainer) -> None:
    """``--psnr`` and ``--ssim``: which of the measures the tables show."""
    p.add_argument(
        "--psnr",
        choices=tuple(PSNRS),
        default="volume-peak",
        help="mean over slices with the volume's peak (default) or each slice's, or the error of "
        "the whole volume",
    )
    p.add_argument("--ssim", choices=tuple(SSIMS), default="volume-peak", help="peak of SSIM")


def preparation_of(args: argparse.Namespace) -> Preparation:
    return Preparation(zero_filling=args.zero_filling, slices=args.slices, round_lr=args.round_lr)


def preparation_options(preparation: Preparation) -> Sequence[str]:
    """The options that make ``preparation``; none for our own.

    >>> preparation_options(Preparation(slices="all", round_lr=True))
    ['--slices', 'all', '--round-lr']
    """
    words = []
    for name in ("zero_filling", "slices"):
        if (value := getattr(preparation, name)) != getattr(OURS, name):
            words += [f"--{name.replace('_', '-')}", value]
    return [*words, *(["--round-lr"] if preparation.round_lr else [])]
