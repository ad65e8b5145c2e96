"""What the samples say: medians, ratios, differences of the outputs, goals, text and picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from benchmarks import record
from benchmarks.whole_scan.competitor import starts
from benchmarks.whole_scan.contenders import POAN, REFERENCE, Contender, Setting
from poan_train.metrics import psnr

Array = np.ndarray[Any, Any]
COLUMNS = (
    ("n", "samples", "{}"),
    ("others", "taken_by_others", "{:.0%}"),
    ("wall s", "wall_s", "{:.2f}"),
    ("s/slice", "wall_s_per_slice", "{:.3f}"),
    ("scaled*", "scaled_to_whole_scan_s", "{:.1f}"),
    ("predicted", "predicted_s", "{:.2f}"),
    ("outside", "outside_inference", "{:.1%}"),
    ("peak MiB", "peak_mib", "{:.0f}"),
    ("predicted", "predicted_mib", "{:.0f}"),
    ("added", "added_mib", "{:.0f}"),
    ("PSNR", "psnr_db", "{:.3f}"),
    ("less ref.", "psnr_less_reference_db", "{:+.4f}"),
    ("max diff", "largest_difference", "{:.1e}"),
    ("off seams", "largest_difference_away_from_seams", "{:.1e}"),
)
"""Title, key of the row and format; ``others`` is the largest share of the cores that other
programs took, ``outside`` the share of the time outside the network."""


def read_output(path: Path) -> Array:
    """SR slices (S, H, W) of an output."""
    data = np.asarray(nibabel.load(path).dataobj, np.float32)
    return np.moveaxis(data, 2, 0)


def inside(setting: Setting, side: int) -> Array:
    """True for HR voxels along one axis that one tile alone gives, whatever the blending."""
    s = setting.scale
    count = np.zeros(s * max(side, setting.tile), int)
    for start in starts(max(side, setting.tile), setting.tile, setting.overlap):
        count[s * start : s * (start + setting.tile)] += 1
    return count[: s * side] == 1


def summarise(
    document: dict[str, Any], setting: Setting, contenders: Sequence[Contender]
) -> dict[str, Any]:
    """One row per contender that has samples; differences are to the PyTorch reference."""
    rows = {}
    outputs = {c.name: c.output(setting) for c in contenders}
    for sample in document["samples"]:
        outputs.setdefault(sample["contender"], setting.work / f"{sample['contender']}.nii.gz")
    hr = np.load(setting.work / "hr.npy")
    reference_path = setting.work / f"{REFERENCE}.nii.gz"
    reference = read_output(reference_path) if reference_path.is_file() else None
    for name, path in outputs.items():
        samples = [s for s in document["samples"] if s["contender"] == name]
        if samples and path.is_file():
            rows[name] = _row(samples, document["facts"], read_output(path), hr, reference, setting)
            if foreseen := document["predicted"].get(name):
                rows[name]["predicted_s"] = foreseen["total_s"]
                rows[name]["predicted_mib"] = foreseen["peak_bytes"] / 2**20
    return {"rows": rows, "ratios": _ratios(rows)}


def _row(
    samples: list[dict[str, Any]],
    facts: dict[str, Any],
    output: Array,
    hr: Array,
    reference: Array | None,
    setting: Setting,
) -> dict[str, Any]:
    wall_s = record.median([s["wall_s"] for s in samples])
    inference_s = record.median([s["stages_s"]["inference"] for s in samples])
    row = {
        "samples": len(samples),
        "taken_by_others": max(s.get("taken_by_others", 0.0) for s in samples),
        "wall_s": wall_s,
        "wall_s_per_slice": wall_s / len(hr),
        "scaled_to_whole_scan_s": wall_s * facts["whole_scan_slices"] / len(hr),
        "inference_s": inference_s,
        "outside_inference": 1 - inference_s / wall_s,
        "cpu_s": record.median([s["cpu_s"] for s in samples]),
        "peak_mib": max(s["peak_bytes"] for s in samples) / 2**20,
        "psnr_db": psnr(hr, output),
    }
    if added := [s["added_bytes"] for s in samples if "added_bytes" in s]:
        row["added_mib"] = max(added) / 2**20
    if reference is not None:
        difference = np.abs(output - reference) / np.abs(reference).max()
        rows, columns = (inside(setting, n // setting.scale) for n in output.shape[1:])
        row |= {
            "largest_difference": float(difference.max()),
            "largest_difference_away_from_seams": float(difference[:, rows][:, :, columns].max()),
            "psnr_less_reference_db": psnr(hr, output) - psnr(hr, reference),
        }
    return row


def _ratios(rows: dict[str, Any]) -> dict[str, Any]:
    """For each poan-run: how many times as long, and as much memory, each competitor takes."""
    return {
        own: {
            other: {
                "time": rows[other]["wall_s"] / rows[own]["wall_s"],
                "memory": rows[other]["peak_mib"] / rows[own]["peak_mib"],
            }
            for other in rows
            if not other.startswith(POAN)
        }
        for own in rows
        if own.startswith(POAN)
    }


def text(document: dict[str, Any]) -> str:
    """The rows as a table. Only the column ``scaled`` is not measured."""
    facts, rows = document["facts"], document["summary"]["rows"]
    lines = [["contender", *(title for title, _, _ in COLUMNS)]]
    for name, row in sorted(rows.items(), key=lambda item: item[1]["wall_s"]):
        cells = [form.format(row[key]) if key in row else "" for _, key, form in COLUMNS]
        lines.append([name, *cells])
    ratios = []
    for own, others in document["summary"]["ratios"].items():
        said = (f"{o} {r['time']:.2f} ({r['memory']:.2f})" for o, r in others.items())
        ratios.append(f"times as long (as much memory) as {own}: {', '.join(said)}")
    head = f"{facts['model']['name']} on {facts['scan']}, LR {facts['lr_shape']}"
    note = f"* wall s by {facts['whole_scan_slices']} slices / slices run, not measured"
    return "\n".join([head, record.table(lines), note, *ratios])


def write_plot(path: Path, document: dict[str, Any]) -> None:
    """Bars: median seconds with every sample as a dot, and peak memory."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = document["summary"]["rows"]
    names = sorted(rows, key=lambda name: rows[name]["wall_s"])
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 1 + 0.4 * len(names)), sharey=True)
    colours = ["#1b6ca8" if name.startswith(POAN) else "#bbbbbb" for name in names]
    left.barh(names, [rows[name]["wall_s"] for name in names], color=colours)
    for name in names:
        values = [s["wall_s"] for s in document["samples"] if s["contender"] == name]
        left.plot(values, [name] * len(values), "k.", markersize=3)
    right.barh(names, [rows[name]["peak_mib"] for name in names], color=colours)
    left.set_xlabel(f"s, {document['facts']['lr_shape'][0]} slices, NIfTI to NIfTI")
    right.set_xlabel("peak resident memory, MiB")
    left.invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
