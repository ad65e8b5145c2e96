"""The cohort's report: one HTML page of what became of each scan, from the records of all runs."""

import html
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from poan_runtime.batch.bids import read_object
from poan_runtime.batch.derivative import WORK
from poan_runtime.errors import PoanError
from poan_runtime.extras import poan_version
from poan_runtime.files import WholeFile

NAME = "poan-report.html"
PAGE = """\
<!doctype html>
<html lang="en"><meta charset="utf-8"><title>poan: cohort</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2em; color: #222 }}
table {{ border-collapse: collapse }} td, th {{ padding: .3em .8em; text-align: right }}
th {{ border-bottom: 1px solid #888 }} td:first-child, th:first-child {{ text-align: left }}
tr.failed td {{ background: #fdd; text-align: left }} img {{ height: 120px }}
</style>
<h1>{done} scans super-resolved, {failed} failed</h1>
<p>{figures}</p>
{failures}<h2>Scans</h2>
<table><tr><th>scan<th>model<th>shape<th>seconds<th>peak memory<th>measured band changed<th>
LR, bicubic, sinc, SR</tr>
{rows}</table>
<p>The measured band is the part of k-space that the scanner measured: its change is
||LR - down(SR)|| / ||LR||. poan {version}. Not a medical device.</p>
</html>
"""


def write(out: Path) -> tuple[Path, int]:
    """Write the page; its path, and how many scans failed. Raises PoanError without records."""
    records = [read_object(path) for path in sorted((out / WORK / "records").glob("*.json"))]
    if not records:
        raise PoanError(f"{out}: no scan was run into it; run it at the level participant first")
    done = [record for record in records if record["state"] == "done"]
    failed = [record for record in records if record["state"] == "failed"]
    page = PAGE.format(
        done=len(done),
        failed=len(failed),
        figures=_figures(done),
        failures=_failures(failed),
        rows="".join(_row(out, record) for record in done),
        version=html.escape(poan_version()),
    )
    with WholeFile(out / NAME) as file:
        file.write(page.encode())
    return out / NAME, len(failed)


def _figures(done: Sequence[dict[str, Any]]) -> str:
    """Seconds, memory and faithfulness over the cohort, in a sentence each."""
    if not done:
        return ""
    seconds = [record["seconds"] for record in done]
    changes = [record["relative_change_of_measured_band"] for record in done]
    peak = max(record["peak_bytes"] for record in done)
    read = sum(record["bytes"]["in"] for record in done)
    written = sum(record["bytes"]["out"] for record in done)
    return (
        f"{sum(seconds):.0f} s in all; {statistics.median(seconds):.1f} s a scan (median), "
        f"{max(seconds):.1f} s at most. A process took {peak / 2**20:.0f} MiB at most. "
        f"{read / 1e6:.1f} MB read, {written / 1e6:.1f} MB written. The measured band changed "
        f"by {statistics.median(changes):.2%} (median), {max(changes):.2%} at most."
    )


def _failures(failed: Sequence[dict[str, Any]]) -> str:
    if not failed:
        return ""
    rows = "".join(
        f'<tr class="failed"><td>{html.escape(record["source"])}'
        f"<td>{html.escape(record['message'])}</tr>\n"
        for record in failed
    )
    return f"<h2>Failed</h2>\n<table>\n{rows}</table>\n"


def _row(out: Path, record: dict[str, Any]) -> str:
    shape = " x ".join(map(str, record["shape"]))
    name, picture = html.escape(record["stem"]), f"{WORK}/pictures/{record['stem']}.png"
    image = f'<img loading="lazy" src="{html.escape(picture)}" alt="{name}">'
    return (
        f"<tr><td>{name}<td>{html.escape(record['model'])}<td>{shape}"
        f"<td>{record['seconds']:.1f}<td>{record['peak_bytes'] / 2**20:.0f} MiB"
        f"<td>{record['relative_change_of_measured_band']:.2%}"
        f"<td>{image if (out / picture).is_file() else ''}</tr>\n"
    )
