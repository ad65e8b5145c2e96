"""The validation figures of the model card, rendered from the JSON files that hold them.

    python -m benchmarks.model_card                  # writes them into MODEL_CARD.md
    python -m benchmarks.model_card --measure VAL    # evaluates the shipped models anew before

Two tables: the shipped models on every slice (results/eval), and, on the slices of the papers'
tables (results/paper_tables, made by ``benchmarks.paper_tables``), bicubic, NLM and the networks
of equal size that were trained under one budget, with the shipped model (results/eval/sampled)
beside them. What was not measured stands as "-", a model with nothing to compare is left out.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paper_tables.summary import read_rows
from poan_runtime.errors import PoanError
from poan_train import evaluate

ROOT = Path(__file__).resolve().parents[1]
CARD = ROOT / "poan_runtime/models/MODEL_CARD.md"
RESULTS = ROOT / "benchmarks/results"
MODELS = ("t2_x2", "t2_x4", "t1_x2", "t1_x4")
OURS, FIELD = "poan-lite", ("edsr-lite", "seran-lite")
COLUMNS = ("bicubic", "nlm", *FIELD, OURS, "shipped")
NAMES = {"nlm": "NLM", "edsr-lite": "EDSR-lite", "seran-lite": "SERAN-lite"}
BEGIN = "<!-- figures: written by python -m benchmarks.model_card -->"
END = "<!-- end of figures -->"

Score = tuple[float, float]
"""(PSNR in dB, SSIM), the volume's peak."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One method on one contrast and scale: what it scores on each volume, and its training."""

    scores: Mapping[str, Score]
    bicubic: Mapping[str, Score]
    parameters: int = 0
    steps: float = 0.0
    budget: str = ""
    rates: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()
    every: int = 1

    @property
    def mean(self) -> Score:
        psnr, ssim = np.mean(list(self.scores.values()), axis=0)
        return float(psnr), float(ssim)


def from_eval(content: Mapping[str, Any]) -> Measured:
    """What poan-eval wrote."""
    scores, up = (
        {v["volume"]: score(v[who]) for v in content["volumes"]} for who in ("sr", "bicubic")
    )
    return Measured(scores=scores, bicubic=up, every=content["every"])


def from_rows(rows: Sequence[Mapping[str, Any]]) -> Measured:
    """Rows of one network that differ in their seed alone: means over seeds."""
    volumes = [v["volume"] for v in rows[0]["volumes"]]
    scores, up = (
        {
            name: tuple(np.mean([score(row["volumes"][i][who]) for row in rows], axis=0).tolist())
            for i, name in enumerate(volumes)
        }
        for who in ("sr", "bicubic")
    )
    protocol = rows[0]["protocol"]
    return Measured(
        scores=scores,
        bicubic=up,
        parameters=rows[0]["parameters"],
        steps=float(np.mean([(row["trained"] or {"steps": 0})["steps"] for row in rows])),
        budget=" ".join(protocol["budget"]),
        rates=tuple(protocol["rates"]),
        seeds=tuple(sorted(row["row"]["seed"] for row in rows)),
        every=protocol["every"],
    )


def score(measures: Mapping[str, float]) -> Score:
    return measures["psnr_volume_peak"], measures["ssim_volume_peak"]


def compared(model: str, results: Path) -> dict[str, Measured]:
    """Every column that was measured for ``model`` (as t2_x2), on the tables' slices.

    Raises PoanError where two columns were measured on other slices or under other budgets.
    """
    contrast, scale = model[:2].upper(), int(model[-1])
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in read_rows(results / "paper_tables"):
        r = row["row"]
        if (r["table"], r["contrast"], r["scale"]) == (1, contrast, scale) and r[
            "label"
        ] in COLUMNS:
            groups.setdefault(r["label"], []).append(row)
    found = {label: from_rows(rows) for label, rows in groups.items()}
    sampled = results / f"eval/sampled/{model}.json"
    if sampled.is_file():
        found["shipped"] = from_eval(json.loads(sampled.read_text()))
    _refuse_a_mixture(model, found)
    return found


def _refuse_a_mixture(model: str, found: Mapping[str, Measured]) -> None:
    measured = list(found.items())
    for (a, first), (b, other) in pairwise(measured):
        same = first.bicubic.keys() == other.bicubic.keys() and all(
            np.allclose(first.bicubic[v], other.bicubic[v], rtol=0, atol=1e-6)
            for v in first.bicubic
        )
        if not same:
            raise PoanError(f"{model}: {a} and {b} were measured on other slices: not one bicubic")
    budgets = {(m.budget, m.rates) for name, m in found.items() if m.steps and name != "shipped"}
    if len(budgets) > 1:
        raise PoanError(f"{model}: trained under several budgets: {sorted(budgets)}")


def render(results: Path = RESULTS) -> str:
    """The block between the card's marks."""
    shipped = {
        m: from_eval(json.loads(path.read_text()))
        for m in MODELS
        if (path := results / f"eval/{m}.json").is_file()
    }
    fair = {model: compared(model, results) for model in MODELS}
    lines = ["### Shipped models, every slice", ""]
    lines += ["| model | volume | bicubic | poan-lite | gain, dB |", "|---" * 5 + "|"]
    for model, m in shipped.items():
        for volume, (up, sr) in _with_mean(m.bicubic, m.scores).items():
            gain = f"{sr[0] - up[0]:+.2f}"
            lines.append(f"| {model} | {volume} | {_text(up)} | {_text(sr)} | {gain} |")
    lines += [
        "",
        "### Against other methods, at equal size and equal budget",
        "",
        *_conditions(fair),
    ]
    lines += ["", f"| model | volume | {' | '.join(NAMES.get(c, c) for c in COLUMNS)} |"]
    lines += ["|---" * (len(COLUMNS) + 2) + "|"]
    for model, columns in fair.items():
        lines += _compared_lines(model, columns) if len(columns) > 1 else []
    lines += ["", *(line for model, columns in fair.items() for line in _verdict(model, columns))]
    lines += ["", *_worth_of_attention(results)]
    return "\n".join(lines)


def _worth_of_attention(results: Path) -> list[str]:
    """What the shipped models lose when their attention block is bypassed, in words."""
    parts = []
    for model in MODELS:
        paths = [
            results / f"eval/{where}/{model}.json" for where in ("sampled", "without_attention")
        ]
        if all(path.is_file() for path in paths):
            whole, bare = (from_eval(json.loads(path.read_text())).scores for path in paths)
            gains = [f"{whole[volume][0] - bare[volume][0]:+.3f}" for volume in whole]
            parts.append(f"{model} {', '.join(gains)}")
    if not parts:
        return []
    return [
        "What the attention block is worth in the shipped models, dB per volume in the order above "
        f"(`poan-eval --without-attention` bypasses it): {'; '.join(parts)}."
    ]


def _with_mean(*columns: Mapping[str, Score]) -> dict[str, tuple[Score, ...]]:
    """Volume -> its scores, one per column, and the means at the end."""
    rows = {v.removesuffix(".nii.gz"): tuple(c[v] for c in columns) for v in columns[0]}
    means = [np.mean(list(c.values()), axis=0) for c in columns]
    return {**rows, "mean": tuple((float(p), float(s)) for p, s in means)}


def _text(value: Score | None) -> str:
    return "-" if value is None else f"{value[0]:.2f} / {value[1]:.4f}"


def _compared_lines(model: str, columns: Mapping[str, Measured]) -> list[str]:
    volumes = next((m.scores for m in columns.values()), {})
    lines = []
    for volume in (*volumes, "mean"):
        texts = [
            _text(None if (m := columns.get(c)) is None else {**m.scores, "mean": m.mean}[volume])
            for c in COLUMNS
        ]
        lines.append(f"| {model} | {volume.removesuffix('.nii.gz')} | {' | '.join(texts)} |")
    return lines


def _conditions(fair: Mapping[str, Mapping[str, Measured]]) -> list[str]:
    """Under what the columns were made, in words."""
    trained = [m for columns in fair.values() for m in columns.values() if m.budget and m.steps]
    budgets = sorted({m.budget for m in trained})
    rates = sorted({rate for m in trained for rate in m.rates})
    seeds = sorted({seed for m in trained for seed in m.seeds})
    every = sorted({m.every for columns in fair.values() for m in columns.values()})
    return [
        "The `-lite` networks have poan-lite's parameter count within 2 % at x2; each was trained "
        f"from scratch with `poan-train {', '.join(budgets) or '-'}` (the same settings, learning "
        f"rate {', '.join(f'{r:g}' for r in rates) or '-'}, seed "
        f"{', '.join(map(str, seeds)) or '-'}): the columns from EDSR-lite to poan-lite are the "
        "fair comparison. NLM is non-local means on slices (Manjón et al. 2010). *shipped* is "
        "the shipped model on the same slices: it was trained for longer (see Training), so its "
        "lead over the others says nothing about the architectures. Slices: "
        f"{', '.join('all' if n == 1 else f'one in {n}' for n in every)}.",
    ]  # fmt: skip


def _verdict(model: str, columns: Mapping[str, Measured]) -> list[str]:
    """Wins and losses of poan-lite at the equal budget, in words."""
    ours = columns.get(OURS)
    if ours is None:
        return [f"- {model}: poan-lite was not trained under the equal budget."]
    parts = []
    for name in ("nlm", *FIELD):
        other = columns.get(name)
        if other is None:
            parts.append(f"{NAMES[name]} not measured")
            continue
        gains = [ours.scores[v][0] - other.scores[v][0] for v in ours.scores]
        ahead = sum(gain > 0 for gain in gains)
        steps = f", {other.steps:,.0f} steps" if other.steps else ""
        parts.append(
            f"{np.mean(gains):+.2f} dB against {NAMES[name]} (ahead on {ahead} of {len(gains)} "
            f"volumes{steps})"
        )
    own = f"{ours.steps:,.0f} steps"
    return [f"- {model}, poan-lite of the equal budget ({own}): {'; '.join(parts)}."]


def rewritten(card: str, block: str) -> str:
    """The card with ``block`` between its marks. Raises PoanError where they are missing."""
    if card.count(BEGIN) != 1 or card.count(END) != 1:
        raise PoanError(f"the card needs one line {BEGIN!r} and one {END!r}")
    head, rest = card.split(BEGIN)
    return f"{head}{BEGIN}\n{block}\n{END}{rest.split(END)[1]}"


def measure(val: Path, results: Path, models: Sequence[str] = MODELS) -> None:
    """Evaluate the shipped checkpoints on every slice, and on the slices of the tables' rows."""
    rows = read_rows(results / "paper_tables")
    sampled = rows[0]["protocol"]["every"] if rows else 1
    for model in models:
        for every, out, *options in (
            (1, f"{model}.json"),
            (sampled, f"sampled/{model}.json"),
            (sampled, f"without_attention/{model}.json", "--without-attention"),
        ):
            command = ["--ckpt", str(ROOT / f"poan_train/checkpoints/{model}.pt")]
            command += ["--data", str(val), "--every", str(every), *options]
            if evaluate.main([*command, "--json", str(results / "eval" / out)]):
                raise PoanError(f"{model}: poan-eval failed, see above")


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m benchmarks.model_card", description=__doc__)
    p.formatter_class = argparse.RawDescriptionHelpFormatter
    p.add_argument("--measure", type=Path, metavar="VAL", help="folder of validation volumes")
    p.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="to measure")
    p.add_argument("--results", type=Path, default=RESULTS)
    p.add_argument("--card", type=Path, default=CARD)
    args = p.parse_args(argv)
    try:
        if args.measure:
            measure(args.measure, args.results, args.models)
        card = args.card.read_text()
        args.card.write_text(rewritten(card, render(args.results)))
    except PoanError as error:
        print(f"model_card: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
