"""poan-train --check-ixi: which convention reproduces the paper's bicubic row on IXI?

A degradation and a metric have conventions that papers leave unsaid and that move PSNR by more
than networks differ: LR rounded or not, which peak, background slices kept or not, a scanner's
zero-filling undone or not, the mean over slices or the error of the whole volume. Bicubic has
nothing to learn, so its published row (:data:`.published.TABLE1`) tells which of them a table was
made with. Before that no number measured here belongs beside a published one.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from poan_runtime.errors import PoanError
from poan_runtime.intensity import decibels, intensity_unit
from poan_train.convention import Preparation, preparation_options
from poan_train.data import hr_slices, is_foreground
from poan_train.degrade import GRID, Array, Degradation, crop_to_multiple, degrade
from poan_train.evaluate import bicubic
from poan_train.metrics import Peak, ssim
from poan_train.networks import SCALES
from poan_train.paper.published import TABLE1, Score
from poan_train.subjects import Source
from poan_train.subjects import find_sources as find

Kept: TypeAlias = Literal["all", "foreground"]
ZeroFilling: TypeAlias = Literal["keep", "undo"]
TEST_SUBJECTS = slice(500, 570)
"""Of IXI's subjects in the order of their number: the 70 that POAN's tables were measured on."""
MATCH_DB, MATCH_SSIM = 0.1, 0.002
"""A convention matches when its mean distance from the published rows is within both."""

Table = Mapping[tuple[str, int], Mapping[str, Score]]


@dataclass(frozen=True, kw_only=True)
class Convention:
    """One way to degrade and to measure. ``str()`` gives it in words."""

    degradation: Degradation
    rounded: bool
    """LR rounded to integers in the file's units."""
    slices: Kept
    psnr: str
    """A word of :data:`.convention.PSNRS`."""
    ssim: Peak
    """Peak of the slice-wise SSIM."""
    zero_filling: ZeroFilling = "keep"

    def __str__(self) -> str:
        lr = f"{self.degradation}{', LR rounded' if self.rounded else ''}"
        lr += "" if self.zero_filling == "keep" else ", zero-filling undone"
        return f"{lr}; {self.slices} slices; PSNR {self.psnr}; SSIM {self.ssim} peak"

    @property
    def preparation(self) -> Preparation:
        return Preparation(
            zero_filling=self.zero_filling, slices=self.slices, round_lr=self.rounded
        )

    @property
    def options(self) -> str:
        """Of benchmarks.paper_tables, and without the first of poan-eval."""
        words = ["--degradation", self.degradation, *preparation_options(self.preparation)]
        return " ".join([*words, "--psnr", self.psnr, "--ssim", f"{self.ssim}-peak"])


MEANS: Mapping[str, Callable[[Array, Array], float]] = {
    "whole-volume": lambda peaks, mse: _db(peaks.max(), mse.mean()),
    "volume-peak": lambda peaks, mse: _mean_db(np.full_like(peaks, peaks.max()), mse),
    "slice-peak": lambda peaks, mse: _mean_db(peaks, mse),
}
DEGRADATIONS: tuple[Degradation, ...] = ("bicubic", "kspace")
PEAKS: tuple[Peak, ...] = ("volume", "slice")
KEPT: tuple[Kept, ...] = ("all", "foreground")
ZERO_FILLINGS: tuple[ZeroFilling, ...] = ("keep", "undo")
CONVENTIONS = tuple(
    Convention(degradation=d, rounded=r, slices=s, psnr=p, ssim=q, zero_filling=z)
    for z, d, r, s, p, q in itertools.product(
        ZERO_FILLINGS, DEGRADATIONS, (False, True), KEPT, MEANS, PEAKS
    )
)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one convention gives for every (contrast, scale), and how far off it is."""

    convention: Convention
    scores: Mapping[tuple[str, int], Score]
    db_off: float
    """Mean |PSNR - published|."""
    ssim_off: float

    @property
    def matches(self) -> bool:
        return self.db_off <= MATCH_DB and self.ssim_off <= MATCH_SSIM


def calibrate(sources: Sequence[Source], table: Table = TABLE1) -> list[Result]:
    """Every convention on every source, the nearest to the table's bicubic entries first.

    A dB and a hundredth of SSIM weigh the same. Means are taken over volumes.
    """
    scores: dict[tuple[str, int], dict[Convention, list[Score]]] = {}
    for source in sources:
        for scale in SCALES:
            if (source.contrast, scale) in table:
                cell = scores.setdefault((source.contrast, scale), {c: [] for c in CONVENTIONS})
                for convention, score in score_source(source, scale).items():
                    cell[convention].append(score)
    results = []
    for convention in CONVENTIONS:
        means = {key: _mean(cell[convention]) for key, cell in scores.items()}
        wanted = {key: table[key]["bicubic"] for key in means}
        db, similarity = (
            float(np.mean([abs(means[key][i] - wanted[key][i]) for key in means])) for i in (0, 1)
        )
        results.append(Result(convention=convention, scores=means, db_off=db, ssim_off=similarity))
    return sorted(results, key=lambda r: r.db_off + 100 * r.ssim_off)


def native_slices(source: Source, zero_filling: ZeroFilling = "keep") -> Array:
    """Slices (S, H, W) of IXI's crop. Raises PoanError where none shows anything."""
    slices, _ = hr_slices(source, None, zero_filling)
    if not is_foreground(slices / np.float32(intensity_unit(slices))).any():
        raise PoanError(f"{source.path}: no slice shows anything but background")
    return slices


def score_source(source: Source, scale: int) -> dict[Convention, Score]:
    """Bicubic's (PSNR, SSIM) on a volume under every convention."""
    scores: dict[Convention, Score] = {}
    for zero_filling in ZERO_FILLINGS:
        hr = crop_to_multiple(native_slices(source, zero_filling), scale)
        scores |= score_volume(hr, scale, zero_filling)
    return scores


def score_volume(
    hr: Array, scale: int, zero_filling: ZeroFilling = "keep"
) -> dict[Convention, Score]:
    """Bicubic's (PSNR, SSIM) on HR slices (S, H, W) under every convention of one zero-filling."""
    scores = {}
    for method, rounded in itertools.product(DEGRADATIONS, (False, True)):
        lr = degrade(hr, scale, method)
        lr = np.rint(lr) if rounded else lr
        up = bicubic(lr, scale, GRID[method])
        mse = ((hr.astype(np.float64) - up) ** 2).mean(axis=(1, 2))
        shown = is_foreground(lr / np.float32(intensity_unit(lr)))
        for kept in KEPT:
            keep = shown | (kept == "all")
            similar = {peak: ssim(hr[keep], up[keep], peak) for peak in PEAKS}
            tops = hr[keep].max(axis=(1, 2)).astype(np.float64)
            for (label, mean), peak in itertools.product(MEANS.items(), PEAKS):
                convention = Convention(
                    degradation=method,
                    rounded=rounded,
                    slices=kept,
                    psnr=label,
                    ssim=peak,
                    zero_filling=zero_filling,
                )
                scores[convention] = (mean(tops, mse[keep]), similar[peak])
    return scores


def _db(peak: float, mse: float) -> float:
    return float(decibels(peak, mse)) if mse > 0 and peak > 0 else float("nan")


def _mean_db(peaks: Array, mse: Array) -> float:
    use = (mse > 0) & (peaks > 0)
    return float(decibels(peaks[use], mse[use]).mean()) if use.any() else float("nan")


def _mean(scores: Sequence[Score]) -> Score:
    return float(np.mean([p for p, _ in scores])), float(np.mean([s for _, s in scores]))


def ixi_test_sources(folder: Path, volumes: int) -> list[Source]:
    """Up to ``volumes`` IXI volumes of each contrast: of the 70 test subjects where all are here,
    else of the folder's last subjects. Raises PoanError if the folder has none."""
    sources = [s for s in find(folder, "all") if s.is_ixi and s.contrast in ("T1", "T2", "PD")]
    if not sources:
        raise PoanError(f"{folder}: no volume named as IXI's are (IXI002-Guys-0828-T2.nii.gz)")
    subjects = sorted({s.subject for s in sources})
    test = subjects[TEST_SUBJECTS] if len(subjects) >= TEST_SUBJECTS.stop else subjects[::-1]
    chosen = []
    for contrast in ("PD", "T1", "T2"):
        of_contrast = {s.subject: s for s in sources if s.contrast == contrast}
        chosen += [of_contrast[who] for who in test if who in of_contrast][:volumes]
    return chosen


def report(results: Sequence[Result], table: Table = TABLE1, best: int = 5) -> str:
    """The ``best`` conventions with their distances, the winner cell by cell, and the verdict."""
    lines = ["off by dB    SSIM   convention"]
    lines += [f"{r.db_off:9.2f} {r.ssim_off:7.4f}   {r.convention}" for r in results[:best]]
    winner = results[0]
    lines += ["", f"{winner.convention}:"]
    for (contrast, scale), (p, s) in sorted(winner.scores.items()):
        wanted = table[contrast, scale]["bicubic"]
        lines.append(f"{contrast} x{scale}  {p:.2f}/{s:.4f}  published {wanted[0]}/{wanted[1]:.4f}")
    lines += ["", f"as options of benchmarks.paper_tables: {winner.convention.options}"]
    lines.append("(of poan-eval as well, but for --degradation, which is the checkpoint's)")
    verdict = "matches" if winner.matches else "is nearest but does not match"
    lines += ["", f"{winner.convention} {verdict} (limits {MATCH_DB} dB, {MATCH_SSIM} SSIM)."]
    if not winner.matches:
        lines.append("Do not quote a number measured this way against the paper's tables.")
    return "\n".join(lines)
