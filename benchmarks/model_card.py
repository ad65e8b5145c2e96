"""Measure the shipped models and write what was found into the model card and their manifests.

    python -m benchmarks.model_card --val VALIDATION_FOLDER --set-aside TRAINING_FOLDER [--every N]
    python -m benchmarks.model_card          # the card again, from the figures that are kept

The first runs `poan-eval --lr-model all` on every checkpoint and keeps its JSON in
benchmarks/results/eval. From that come the card's tables, and in each manifest ``gains`` (mean over
the validation volumes, in dB over the better of bicubic and sinc, by kind of LR) and
``keep_measured``: the share of the measured band that is put back, the largest that does
not lower the mean gain over volumes and kinds, and lowers no single gain by more than 0.1 dB.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import record
from poan_runtime.errors import PoanError
from poan_runtime.models.find import MODELS as SHIPPED
from poan_runtime.models.manifest import MANIFEST_NAME, read_manifest
from poan_train import cli as training
from poan_train import evaluate

MODELS = ("mr_x2", "t1_x2", "t2_x2", "mr_x3", "mr_x4", "t1_x4")
ASIDE = ("sub-gbm2", "sub-ucsfbr08", "sub-prostatex0001", "sub-fetal01")
"""Subjects that no training saw: T1 after contrast, breast, prostate, fetus."""
CARD = SHIPPED.parent / "MODEL_CARD.md"
CHECKPOINTS = Path(training.__file__).parent / "checkpoints"
BEGIN = "<!-- figures: written by python -m benchmarks.model_card -->"
END = "<!-- end of figures -->"
MOST_LOST_DB = 0.1
Rows = list[dict[str, Any]]


def measure(model: str, folder: Path, every: int, results: Path, name: str) -> None:
    """Evaluate a checkpoint on all kinds; the figures go to ``results``/eval/``name``.json."""
    out = results / "eval" / f"{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    options = ["--data", str(folder), "--lr-model", "all", "--every", str(every)]
    checkpoint = CHECKPOINTS / f"{model}.pt"
    if evaluate.main(["--ckpt", str(checkpoint), *options, "--json", str(out)]):
        raise PoanError(f"{checkpoint}: could not be evaluated")


def set_aside(folder: Path, target: Path) -> None:
    """Link the volumes of the subjects in `ASIDE` into ``target``; each must be there."""
    for subject in ASIDE:
        found = sorted(folder.glob(f"*{subject}*.nii*"))
        if not found:
            raise PoanError(f"{folder}: no volume of {subject}")
        for path in found:
            (target / path.name).symlink_to(path.resolve())


def read(results: Path, name: str) -> dict[str, Any]:
    """The figures of one evaluation."""
    path = results / "eval" / f"{name}.json"
    if not path.is_file():
        raise PoanError(f"{path}: no such figures; measure with --val")
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def keeps(rows: Rows) -> float:
    """Which share of the measured band is put back: see this module's rule."""
    shares = [0.0, *(float(share) for share in rows[0]["kept_gain"])]

    def allowed(share: float) -> bool:
        lost = min(gain(row, share) - gain(row, 0.0) for row in rows)
        return mean_gain(rows, share) >= mean_gain(rows, 0.0) and lost >= -MOST_LOST_DB

    return max(filter(allowed, shares))


def gain(row: Mapping[str, Any], share: float) -> float:
    """dB over the better of bicubic and sinc, with that share of the measured band put back."""
    kept: Mapping[str, float] = row["kept_gain"]
    return kept[f"{share:g}"] if share else float(row["gain_psnr"])


def mean_gain(rows: Rows, share: float) -> float:
    """Over all volumes and kinds."""
    return float(np.mean([gain(row, share) for row in rows]))


def gains(rows: Rows, share: float) -> dict[str, float]:
    """Mean gain in dB by kind, of what the runtime writes."""
    kinds = dict.fromkeys(row["kind"] for row in rows)
    return {
        kind: round(mean_gain([r for r in rows if r["kind"] == kind], share), 2) for kind in kinds
    }


def tell_manifest(model: str, rows: Rows, shipped: Path) -> None:
    """Write gains and ``keep_measured`` into the manifest of a shipped model."""
    folder = shipped / model
    manifest = read_manifest(folder)
    share = keeps(rows)
    told = replace(manifest, keep_measured=share, gains=gains(rows, share))
    (folder / MANIFEST_NAME).write_text(told.text())


def lines_of(model: str, content: Mapping[str, Any], share: float) -> list[str]:
    """Rows of the table: one a volume, PSNR of bicubic and sinc and the gain, kind by kind."""
    kinds = content["kinds"]
    by_volume: dict[str, dict[str, Any]] = {}
    for row in content["volumes"]:
        by_volume.setdefault(row["volume"].split(".")[0], {})[row["kind"]] = row
    lines = []
    for volume, rows in by_volume.items():
        cells = [
            f"{rows[kind]['bicubic']['psnr']:.2f} / {rows[kind]['sinc']['psnr']:.2f} "
            f"**{gain(rows[kind], share):+.2f}**"
            for kind in kinds
        ]
        lines.append(f"| {model} | {volume} | {' | '.join(cells)} |")
    return lines


def table(results: Path, suffix: str, keeping: Mapping[str, float]) -> list[str]:
    """One table over all models."""
    contents = {model: read(results, model + suffix) for model in keeping}
    kinds = next(iter(contents.values()))["kinds"]
    every = {content["every"] for content in contents.values()}
    if len(every) != 1:
        raise PoanError(f"{results}: one slice in {sorted(every)}: measure all models alike")
    lines = [
        f"PSNR within the head in dB, bicubic / sinc and **gain of the model over the better of "
        f"the two**; one slice in {every.pop()}.",
        "",
        f"| model | volume | {' | '.join(kinds)} |",
        f"|---|---|{'---|' * len(kinds)}",
    ]
    for model, content in contents.items():
        lines += lines_of(model, content, keeping[model])
    return lines


def render(results: Path = record.RESULTS) -> str:
    """The block of the card."""
    rows = {model: read(results, model)["volumes"] for model in MODELS}
    keeping = {model: keeps(found) for model, found in rows.items()}
    kept = ", ".join(f"{model} {share:.0%}" for model, share in keeping.items())
    lowest = {
        model: min(gain(row, keeping[model]) for row in found) for model, found in rows.items()
    }
    return "\n".join(
        [
            "### Validation volumes, five kinds of LR",
            "",
            *table(results, "", keeping),
            "",
            f"Lowest gain: {', '.join(f'{m} {least:+.2f} dB' for m, least in lowest.items())}. "
            f"Share of the measured band that is put back by default: {kept}.",
            "",
            "### Subjects that were set aside",
            "",
            *table(results, "_set_aside", keeping),
        ]
    )


def rewritten(card: str, block: str) -> str:
    """The card with ``block`` between its two marks."""
    if card.count(BEGIN) != 1 or card.count(END) != 1:
        raise PoanError(f"the card needs one line {BEGIN!r} and one {END!r}")
    before, rest = card.split(BEGIN)
    return f"{before}{BEGIN}\n{block}\n{END}{rest.split(END)[1]}"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--val", type=Path, help="validation volumes")
    p.add_argument("--set-aside", type=Path, help="folder that holds the subjects set aside")
    p.add_argument("--every", type=int, default=1, help="one slice in N (default 1)")
    p.add_argument("--models", nargs="+", default=MODELS, choices=MODELS, help="which to measure")
    p.add_argument("--results", type=Path, default=record.RESULTS)
    p.add_argument("--card", type=Path, default=CARD)
    p.add_argument("--shipped", type=Path, default=SHIPPED, help="folder of the manifests")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        for model in args.models:
            if args.val:
                measure(model, args.val, args.every, args.results, model)
            if args.set_aside:
                with tempfile.TemporaryDirectory() as folder:
                    set_aside(args.set_aside, Path(folder))
                    name = f"{model}_set_aside"
                    measure(model, Path(folder), args.every, args.results, name)
        args.card.write_text(rewritten(args.card.read_text(), render(args.results)))
        for model in MODELS:
            tell_manifest(model, read(args.results, model)["volumes"], args.shipped)
    except PoanError as error:
        print(f"model_card: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
