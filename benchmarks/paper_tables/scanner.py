"""Table 1 on LR as a scanner makes it: networks trained on it, measured on fixed kinds of LR."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

HOW = (
    "Trained on LR as a scanner makes it, measured within the head on each kind of LR: PSNR in dB "
    "(one error over the volume's head, its peak), mean over volumes and seeds, and in brackets "
    "the gain over the better of bicubic and sinc interpolation. The paper has no such table."
)


def write_scanner_table(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """``table1_scanner.md`` in ``folder``."""
    path = folder / "table1_scanner.md"
    path.write_text(scanner_table(rows))
    return path


def scanner_table(rows: Sequence[dict[str, Any]]) -> str:
    """A line per contrast, scale and network, a column per kind."""
    kinds = list(dict.fromkeys(v["kind"] for row in rows for v in row["volumes"]))
    budgets = sorted({" ".join(row["protocol"]["budget"]) for row in rows})
    lines = ["# Table 1 on a scanner's LR", "", f"Budget: `{'`, `'.join(budgets)}`. {HOW}", ""]
    lines += [f"| contrast, scale | network | seeds | {' | '.join(kinds)} |"]
    lines += ["|---" * (3 + len(kinds)) + "|"]
    keys = dict.fromkeys((r["row"]["contrast"], r["row"]["scale"]) for r in rows)
    for contrast, scale in keys:
        own = [r for r in rows if (r["row"]["contrast"], r["row"]["scale"]) == (contrast, scale)]
        first = f"{contrast} x{scale}"
        for rival in ("bicubic", "sinc"):
            cells = [f"{mean(own, kind, rival):.2f}" for kind in kinds]
            lines.append(f"| {first} | {rival} | | {' | '.join(cells)} |")
        for label in dict.fromkeys(r["row"]["label"] for r in own):
            mine = [r for r in own if r["row"]["label"] == label]
            cells = [f"{mean(mine, k, 'sr'):.2f} ({gain(mine, k):+.2f})" for k in kinds]
            lines.append(f"| {first} | {label} | {len(mine)} | {' | '.join(cells)} |")
    commands = [f"- `{command}`" for row in rows for command in row["commands"]]
    return "\n".join([*lines, "", "## Commands", "", *commands, ""])


def mean(rows: Sequence[dict[str, Any]], kind: str, method: str) -> float:
    """Mean PSNR over the rows' volumes of one kind."""
    own = [v[method]["psnr"] for row in rows for v in row["volumes"] if v["kind"] == kind]
    return float(np.mean(own))


def gain(rows: Sequence[dict[str, Any]], kind: str) -> float:
    own = [v["gain_psnr"] for row in rows for v in row["volumes"] if v["kind"] == kind]
    return float(np.mean(own))
