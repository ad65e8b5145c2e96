"""A benchmark as a table for the terminal."""

from typing import Any

from poan_runtime.bench.statistics import FIGURES

SLOWEST = 10
"""Layers that the table shows; the JSON has all."""
STAGE_NAMES = {
    "total": "batch, host to host",
    "enqueue": "enqueue",
    "h2d": "H2D",
    "compute": "compute",
    "d2h": "D2H",
}


def lines_of(document: dict[str, Any]) -> list[str]:
    """Latency by stage, whole scan, cold start, memory and ratios, for each model.

    Each line is as it is: a name in one may hold what a terminal obeys.
    """
    parts = [_model(model) for model in document["models"]]
    for label, ratio in document["ratios_to_first"].items():
        first = document["models"][0]["label"]
        line = (
            f"{label} takes {ratio['of_medians']:.3f} times as long as {first} "
            f"(median of pairs {ratio['median_of_pairs']:.3f})"
        )
        parts.append([line])
    return [line for part in parts for line in ("", *part)][1:]


def _model(model: dict[str, Any]) -> list[str]:
    lines = [
        f"{model['label']}: {model['backend']} {model['backend_version']} on {model['device']}, "
        f"{model['precision']}, batch {model['batch']} of tile {model['tile']}, "
        f"sha256 {model['sha256'][:12]}",
        f"{'ms':24}" + "".join(f"{name:>10}" for name in FIGURES),
    ]
    for stage, figures in model["latency_ms"].items():
        more = [f"{key} {value:.3f}" for key, value in figures.items() if key not in FIGURES]
        lines.append(_row(STAGE_NAMES[stage], figures) + "".join(f"  {one}" for one in more))
    if model["scan_s"]:
        seconds = {name: 1e3 * value for name, value in model["scan_s"].items()}
        lines.append(_row("whole scan", seconds))
    if model["tiles_per_second"]:
        lines.append(f"{'throughput':24}{model['tiles_per_second']:10.2f} tiles/s")
    if model.get("tiles_per_second_in_flight"):
        flow = model["tiles_per_second_in_flight"]
        lines.append(f"{'two batches in flight':24}{flow:10.2f} tiles/s")
    if model.get("roofline_percent") is not None:
        lines.append(f"{'of the bandwidth':24}{model['roofline_percent']:10.1f} %")
    lines += _slowest(model.get("layers"))
    lines += [f"doubt: {doubt}" for doubt in model.get("doubts", ())]
    for name, cold in (model["cold_start"] or {}).items():
        lines.append(_cold(name.replace("_", " "), cold))
    lines += [f"note: {notice}" for notice in model["notices"]]
    return lines


def _slowest(layers: dict[str, Any] | None) -> list[str]:
    """The layers that take longest."""
    if layers is None:
        return []
    times: dict[str, float] = layers["median_ms"]
    total = sum(times.values()) or 1.0
    slowest = sorted(times, key=times.__getitem__, reverse=True)[:SLOWEST]
    return [
        f"{f'layers ({len(times)})':24}{total:10.3f} ms, profiled one by one",
        *(f"{times[name]:10.3f} ms {times[name] / total:6.1%}  {name}" for name in slowest),
    ]


def _row(name: str, figures: dict[str, float]) -> str:
    return f"{name:24}" + "".join(f"{figures[key]:10.3f}" for key in FIGURES)


def _cold(name: str, cold: dict[str, Any]) -> str:
    device = cold["device_bytes"]
    memory = f"host {cold['peak_host_bytes'] / 2**20:.0f} MiB"
    if device is not None:
        memory += f", device {device / 2**20:.0f} MiB"
    return (
        f"{'start, ' + name:24}import {cold['import_s']:.2f} s, load {cold['load_s']:.2f}, "
        f"create {cold['create_s']:.2f}, first batch {cold['first_batch_s']:.2f}, "
        f"second {cold['second_batch_s']:.2f}; peak {memory}"
    )
