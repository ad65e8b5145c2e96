"""Tables as Markdown, CSV and PNG."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.paper_tables.absent import read_absent
from benchmarks.paper_tables.scanner import write_scanner_table
from benchmarks.paper_tables.summary import Cell, agreement, cells, read_rows
from poan_runtime.errors import PoanError
from poan_train.convention import Preparation
from poan_train.paper.published import NAMES, TABLE1, base_name

TITLES = {
    1: "Table 1: contrast x scale x network",
    2: "Table 2: point, patch and pyramid similarity",
    3: "Table 3: channel and spatial attention",
}
ABLATED = {
    2: dict(zip("ABCDEFGH", ("none", "point", "patch", "pyramid", "point, patch", "patch, pyramid",
                             "point, pyramid", "point, patch, pyramid"), strict=True)),
    3: dict(zip("ABCD", ("none", "channel", "spatial", "channel, spatial"), strict=True)),
}  # fmt: skip
THEIRS = {2: "PD x2", 3: "T1 x4"}
"""What the paper measured its ablations on."""
NOTES = (
    "± is the standard deviation over volumes (of each volume's mean over seeds); in brackets over "
    "seeds. The gain is PSNR over bicubic on the same volumes. The paper's numbers are for IXI, "
    "its own sizes and 1000 epochs (ablations 400): they are here for the order and the gains, not "
    "to be subtracted from ours."
)


def write_tables(folder: Path, psnr: str = "volume-peak", ssim: str = "volume-peak") -> list[Path]:
    """tableN.md, .csv and .png in ``folder`` from its rows; the paths that were written.

    ``psnr`` and ``ssim`` are words of `PSNRS` and `SSIMS`. Rows on a scanner's LR have a table of
    their own beside Table 1. Raises PoanError without rows.
    """
    rows = read_rows(folder)
    if not rows:
        raise PoanError(f"{folder}: holds no rows yet")
    papers = [row for row in rows if not row["row"].get("scanner")]
    written = []
    for table in sorted({row["row"]["table"] for row in papers}):
        members = [row for row in papers if row["row"]["table"] == table]
        summary = _ordered(cells(members, psnr, ssim))
        stem = folder / f"table{table}"
        absent = read_absent(folder) if table == 1 else {}
        how = f"PSNR {psnr}, SSIM {ssim}"
        stem.with_suffix(".md").write_text(markdown(table, summary, members, how, absent))
        _write_csv(stem.with_suffix(".csv"), summary)
        _draw(stem.with_suffix(".png"), table, summary, members)
        written += [stem.with_suffix(s) for s in (".md", ".csv", ".png")]
    scanner = [row for row in rows if row["row"].get("scanner")]
    return [*written, *([write_scanner_table(folder, scanner)] if scanner else [])]


ORDER = (*NAMES[:-2], "seran", *NAMES[-2:])
"""The paper's columns, with SERAN before POAN."""


def _ordered(members: Sequence[Cell]) -> list[Cell]:
    """By contrast and scale; letters in their order, networks in the paper's."""
    return sorted(members, key=lambda c: (c.contrast, c.scale, _place(c), c.label))


def _place(cell: Cell) -> int:
    return place_of(cell.table, cell.label)


def place_of(table: int, label: str) -> int:
    """Where a label stands among the paper's columns; letters and unknown names before all."""
    name = base_name(label)
    return ORDER.index(name) if table == 1 and name in ORDER else -1


def title(table: int, summary: Sequence[Cell]) -> str:
    """A table's title; of an ablation with what it was measured on, here and in the paper."""
    if table not in THEIRS:
        return TITLES[table]
    on = ", ".join(sorted({f"{c.contrast} x{c.scale}" for c in summary}))
    return f"{TITLES[table]}, on {on} (the paper's: {THEIRS[table]})"


def markdown(
    table: int,
    summary: Sequence[Cell],
    rows: Sequence[dict[str, Any]],
    how: str,
    absent: Mapping[str, str],
) -> str:
    """The table as the paper lays it out, every cell with its spread, and the commands.

    ``how`` says how it was measured, ``absent`` why a contrast has no rows.
    """
    lines = [f"# {title(table, summary)}", "", _budget(rows, how), "", NOTES, ""]
    if table == 1:
        lines += [*_matrix(summary), "", *_reasons(summary, absent), ""]
    lines += ["## Agreement with the paper", "", *_agreements(summary), ""]
    lines += ["## Every row", "", *_long(table, summary, _clock(rows))]
    lines += ["", "## Commands", ""]
    for row in rows:
        lines += [f"- {row['row']['label']}, {row['row']['contrast']} x{row['row']['scale']}, "
                  f"seed {row['row']['seed']}:"]  # fmt: skip
        lines += [f"  `{command}`" for command in row["commands"]]
    return "\n".join(lines) + "\n"


def _reasons(summary: Sequence[Cell], absent: Mapping[str, str]) -> list[str]:
    """Why there are rows of the paper's table without a number."""
    made = {(c.contrast, c.scale) for c in summary}
    lines = [f"- {contrast}: {reason}." for contrast, reason in sorted(absent.items())]
    left = [f"{c} x{s}" for c, s in sorted(TABLE1) if (c, s) not in made and c not in absent]
    return [*lines, *([f"- {', '.join(left)}: not run."] if left else [])]


def _budget(rows: Sequence[dict[str, Any]], how: str) -> str:
    """Under what the rows were made, in words."""
    protocols = [row["protocol"] for row in rows]
    budgets = sorted({" ".join(p["budget"]) for p in protocols})
    rates = sorted({rate for p in protocols for rate in p["rates"]})
    tries = sorted({tried for p in protocols for tried in p.get("tries", ())})
    searches = sorted({" ".join(p.get("search", ())) for p in protocols} - {""})
    seeds = sorted({row["row"]["seed"] for row in rows})
    every = sorted({p["every"] for p in protocols})
    own = sorted({own for p in protocols for own in p.get("own", ())})
    prepared = {" ".join(_prepared(p)) for p in protocols}
    rate = ", ".join(f"{r:g}" for r in rates)
    if len(rates) + len(tries) > 1:
        rate += f", then `{'`, `'.join(tries)}` at the best rate" if tries else ""
        rate += ", each tried"
        rate += f" under `{'`, `'.join(searches)}`" if searches else ""
        rate += "; what is best on subjects held out of the training data stays"
    return (
        f"Budget of every network: `{'`, `'.join(budgets)}`{_meaning(budgets)}. Learning rate "
        f"{rate}; seeds {', '.join(map(str, seeds))}. {_sizes(rows)}Slices: "
        f"{', '.join('all' if n == 1 else f'one in {n}' for n in every)}. {how}; volumes: "
        f"{', '.join(sorted(prepared))}."
        + (f" Of one network alone: `{'`, `'.join(own)}`." if own else "")
    )


def _prepared(protocol: Mapping[str, Any]) -> list[str]:
    """How its volumes were prepared, in words."""
    p = Preparation(**protocol.get("preparation", {}))
    said = ["a scanner's zero-filling undone" if p.zero_filling == "undo" else "zero-filling kept"]
    said += ["without background slices" if p.slices == "foreground" else "with every slice"]
    return [*said, *(["and LR in integers"] if p.round_lr else [])]


def _meaning(budgets: Sequence[str]) -> str:
    if all("cpu" in b for b in budgets):
        return " (processor time: a costlier network takes fewer steps)"
    return ""


def _sizes(rows: Sequence[dict[str, Any]]) -> str:
    """Whether the trained networks of one scale have one parameter count."""
    counts = {(r["row"]["scale"], r["row"]["label"]): r["parameters"] for r in rows if r["trained"]}
    odd = set()
    for scale in {s for s, _ in counts}:
        middle = np.median([n for (s, _), n in counts.items() if s == scale])
        odd |= {
            name for (s, name), n in counts.items() if s == scale and abs(n / middle - 1) > 0.05
        }
    if not counts or len(odd) > 2:
        return ""
    but = f" but for {', '.join(sorted(odd))}" if odd else ""
    return f"Parameters equal within 5 %{but}. "


def _clock(rows: Sequence[dict[str, Any]]) -> str:
    cpu = all("--cpu-minutes" in row["protocol"]["budget"] for row in rows)
    return "processor minutes" if cpu else "minutes"


def _agreements(summary: Sequence[Cell]) -> list[str]:
    lines = []
    for contrast, scale in sorted({(c.contrast, c.scale) for c in summary}):
        members = [c for c in summary if (c.contrast, c.scale) == (contrast, scale)]
        lines.append(f"- {contrast} x{scale}: {agreement(members)}")
    return lines


def _matrix(summary: Sequence[Cell]) -> list[str]:
    labels = list(dict.fromkeys(c.label for c in sorted(summary, key=_place)))
    keys = sorted({(c.contrast, c.scale) for c in summary} | set(TABLE1))
    by_place = {(c.contrast, c.scale, c.label): c for c in summary}
    lines = ["| | " + " | ".join(labels) + " |", "|---" * (len(labels) + 1) + "|"]
    for contrast, scale in keys:
        found = [by_place.get((contrast, scale, label)) for label in labels]
        texts = [f"{c.psnr.mean:.2f}/{c.ssim.mean:.4f}" if c else "-" for c in found]
        lines.append(f"| {contrast} x{scale} | " + " | ".join(texts) + " |")
    return lines


def _long(table: int, summary: Sequence[Cell], clock: str) -> list[str]:
    head = f"contrast, scale|network|parameters|steps|{clock}|PSNR, dB|SSIM|gain, dB"
    head += "|paper PSNR/SSIM|paper gain" if table == 1 else "|over A, dB|paper PSNR|paper over A"
    columns = head.split("|")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for c in summary:
        name = c.label if table == 1 else f"{c.label}: {ABLATED[table][c.label]} ({c.arch})"
        theirs = "-" if c.paper_psnr is None else f"{c.paper_psnr:.2f}"
        theirs += "" if c.paper_ssim is None else f"/{c.paper_ssim:.4f}"
        gain = "-" if c.paper_gain is None else f"{c.paper_gain:+.2f}"
        values = [f"{c.contrast} x{c.scale}", name, f"{c.parameters:,}", f"{c.steps:.0f}"]
        values += [f"{c.minutes:.1f}", c.psnr.text(2), c.ssim.text(4), c.gain.text(2)]
        if table != 1:
            first = next((a for a in summary if a.label == "A"), None)
            values += [f"{c.psnr.mean - first.psnr.mean:+.2f}" if first else "-"]
        values += [theirs, gain]
        lines.append(f"| {' | '.join(values)} |")
    return lines


def _write_csv(path: Path, summary: Sequence[Cell]) -> None:
    records = []
    for cell in summary:
        record = asdict(cell)
        del record["by_volume"]
        for name in ("psnr", "ssim", "gain"):
            values = record.pop(name)
            record |= {name: values["mean"]}
            record |= {f"{name}_sd_{over}": values[over] for over in ("volumes", "seeds")}
        records.append(record)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, records[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)


def _draw(path: Path, table: int, summary: Sequence[Cell], rows: Sequence[dict[str, Any]]) -> None:
    """A panel per contrast and scale: gain over bicubic, thin bars over volumes, thick over seeds.

    Diamonds are the paper's gains (over bicubic in Table 1; Tables 2 and 3: over its row A, drawn
    from our row A).
    """
    keys = sorted({(c.contrast, c.scale) for c in summary})
    figure = Figure(figsize=(1.5 + 4.0 * len(keys), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (contrast, scale) in zip(
        np.ravel(figure.subplots(1, len(keys), squeeze=False)), keys, strict=True
    ):
        members = [c for c in summary if (c.contrast, c.scale) == (contrast, scale)]
        x = np.arange(len(members))
        gains = np.array([c.gain.mean for c in members])
        axes.bar(x, gains, color="0.75")
        for over, width in (("volumes", 1.0), ("seeds", 4.0)):
            sizes = np.nan_to_num([getattr(c.gain, over) for c in members])
            if sizes.any():
                axes.errorbar(x, gains, sizes, fmt="none", ecolor="k", elinewidth=width,
                              label=f"± sd over {over}")  # fmt: skip
        start = 0.0 if table == 1 else next((c.gain.mean for c in members if c.label == "A"), 0.0)
        theirs = [(i, start + c.paper_gain) for i, c in enumerate(members) if c.paper_gain]
        if theirs:
            axes.plot(*zip(*theirs, strict=True), "D", color="tab:red", label="paper (IXI)")
        names = [
            c.label if table == 1 else f"{c.label}: {ABLATED[table][c.label]}" for c in members
        ]
        axes.set_xticks(x, names, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_title(f"{contrast} x{scale}")
        axes.set_ylabel("PSNR over bicubic, dB")
        axes.axhline(0, color="k", linewidth=0.5)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    budgets = sorted({" ".join(row["protocol"]["budget"]) for row in rows})
    figure.suptitle(
        f"{title(table, summary)};\neach trained with {', '.join(budgets)}", fontsize="medium"
    )
    figure.savefig(path, dpi=120)
