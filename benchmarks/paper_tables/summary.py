"""From rows to cells: means over volumes and seeds, with the spread over each."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from poan_runtime.errors import PoanError
from poan_train.convention import PSNRS, SSIMS
from poan_train.degrade import Array
from poan_train.paper.published import TABLE1, TABLE2, TABLE3, base_name, published


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A mean, and standard deviations: over volumes (of means over seeds), over seeds (of means
    over volumes). NaN where there is only one."""

    mean: float
    volumes: float
    seeds: float

    def text(self, digits: int) -> str:
        parts = [f"{self.mean:.{digits}f}"]
        parts += [f"±{self.volumes:.{digits}f}" if np.isfinite(self.volumes) else ""]
        parts += [f"(seeds ±{self.seeds:.{digits}f})" if np.isfinite(self.seeds) else ""]
        return " ".join(p for p in parts if p)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One network on one contrast and scale, all seeds together."""

    table: int
    label: str
    arch: str
    contrast: str
    scale: int
    seeds: int
    volumes: int
    parameters: int
    steps: float
    minutes: float
    """Of training: processor time where the budget is one, else by the clock."""
    by_volume: tuple[float, ...]
    """PSNR of each volume, dB, mean over seeds."""
    psnr: Spread
    ssim: Spread
    gain: Spread
    """PSNR over bicubic, dB."""
    paper_psnr: float | None
    paper_ssim: float | None
    paper_gain: float | None
    """Over bicubic (Table 1), over row A (Tables 2 and 3)."""


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The contents of the folder's row files, by name."""
    found = sorted((folder / "rows").glob("table*.json"))
    return [json.loads(p.read_text()) for p in found if not p.name.endswith(".eval.json")]


def cells(
    rows: Sequence[dict[str, Any]], psnr: str = "volume-peak", ssim: str = "volume-peak"
) -> list[Cell]:
    """Rows that differ in their seed alone, joined; in the order of their first appearance.

    ``psnr`` and ``ssim`` are words of `PSNRS` and `SSIMS`. Raises PoanError for a row that was made
    before the measure was taken.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        r = row["row"]
        key = r["table"], r["contrast"], r["scale"], r["label"], r["arch"]
        groups.setdefault(key, []).append(row)
    return [_cell(group, PSNRS[psnr], SSIMS[ssim]) for group in groups.values()]


def _values(group: Sequence[dict[str, Any]], who: str, measure: str) -> Array:
    """(seeds, volumes) of a measure."""
    try:
        return np.array([[v[who][measure] for v in row["volumes"]] for row in group])
    except KeyError:
        label = group[0]["row"]["label"]
        raise PoanError(f"row {label} was made before {measure} was taken; make it again") from None


def _cell(group: Sequence[dict[str, Any]], psnr_key: str, ssim_key: str) -> Cell:
    r = group[0]["row"]
    psnr, ssim, base = (
        _values(group, who, measure)
        for who, measure in (("sr", psnr_key), ("sr", ssim_key), ("bicubic", psnr_key))
    )  # (seeds, volumes) each
    clock = "cpu_seconds" if "--cpu-minutes" in group[0]["protocol"]["budget"] else "seconds"
    trained = [row["trained"] or {"steps": 0, clock: 0.0} for row in group]
    theirs = _published(r["table"], r["label"], r["arch"], r["contrast"], r["scale"])
    return Cell(
        table=r["table"],
        label=r["label"],
        arch=r["arch"],
        contrast=r["contrast"],
        scale=r["scale"],
        seeds=psnr.shape[0],
        volumes=psnr.shape[1],
        parameters=group[0]["parameters"],
        steps=float(np.mean([t["steps"] for t in trained])),
        minutes=float(np.mean([t[clock] for t in trained])) / 60,
        by_volume=tuple(psnr.mean(axis=0).tolist()),
        psnr=spread(psnr),
        ssim=spread(ssim),
        gain=spread(psnr - base),
        paper_psnr=theirs[0],
        paper_ssim=theirs[1],
        paper_gain=theirs[2],
    )


def spread(values: Array) -> Spread:
    """Of values (seeds, volumes)."""
    seeds, volumes = values.shape
    return Spread(
        mean=float(values.mean()),
        volumes=float(values.mean(axis=0).std(ddof=1)) if volumes > 1 else float("nan"),
        seeds=float(values.mean(axis=1).std(ddof=1)) if seeds > 1 else float("nan"),
    )


def _published(
    table: int, label: str, arch: str, contrast: str, scale: int
) -> tuple[float | None, float | None, float | None]:
    if table == 1:
        score = published(base_name(arch), contrast, scale)
        if score is None:
            return None, None, None
        return *score, score[0] - TABLE1[contrast, scale]["bicubic"][0]
    theirs = TABLE2 if table == 2 else TABLE3
    return theirs[label], None, theirs[label] - theirs["A"]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How many pairs of rows of one contrast and scale stand in the published order."""

    agree: int
    pairs: int
    clear_agree: int
    """The same among the pairs whose order is one on every volume."""
    clear: int

    def __str__(self) -> str:
        return (
            f"{self.agree} of {self.pairs} pairs of rows stand in the paper's order; of the "
            f"{self.clear} pairs that every volume puts in one order, {self.clear_agree}."
        )


def agreement(members: Sequence[Cell]) -> Agreement:
    """Of ours and the published PSNR, for rows of one contrast and scale that have both."""
    known = [c for c in members if c.paper_psnr is not None]
    signs, clear = [], []
    for i, a in enumerate(known):
        for b in known[:i]:
            differences = np.subtract(a.by_volume, b.by_volume)
            signs.append((a.psnr.mean - b.psnr.mean) * ((a.paper_psnr or 0) - (b.paper_psnr or 0)))
            clear.append(bool(np.all(differences > 0) or np.all(differences < 0)))
    return Agreement(
        agree=sum(s > 0 for s in signs),
        pairs=len(signs),
        clear_agree=sum(s > 0 for s, c in zip(signs, clear, strict=True) if c),
        clear=sum(clear),
    )
