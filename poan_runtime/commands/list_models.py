"""`poan-run --list`: the shipped models, what each was trained for and what it gains."""

import textwrap
from collections import defaultdict
from pathlib import Path

from poan_runtime.commands.say import Voice
from poan_runtime.models.find import AUTO, other_names, shipped_models
from poan_runtime.models.manifest import Manifest, read_manifest

COLUMNS = ("model", "contrast", "scale", "trained on", "gain", "size")
WIDTH = 100
"""Columns of text that the licences are broken into."""


def list_models(voice: Voice) -> int:
    """Print the shipped models as a table, their other names, and the licences of their data."""
    manifests = {folder: read_manifest(folder) for folder in shipped_models()}
    if not manifests:
        voice.say("no models are shipped with this installation")
        return 0
    for row in aligned([COLUMNS, *(_row(*one) for one in manifests.items())]):
        voice.say(row)
    voice.say(f"{', '.join(AUTO)}: the model for the scan's contrast")
    for name, model in other_names().items():
        voice.say(f"{name}: another name of {model}")
    trained_on: dict[str, list[str]] = defaultdict(list)
    for folder, manifest in manifests.items():
        trained_on[licence_of(manifest)].append(folder.name)
    for licence, names in trained_on.items():
        said = f"licence of the data of {', '.join(names)}: {licence}"
        for line in textwrap.wrap(said, WIDTH, subsequent_indent="  "):
            voice.say(line)
    return 0


def licence_of(manifest: Manifest) -> str:
    """The licence of the data that the network was trained on."""
    return manifest.data_licence or str(manifest.training.get("licence") or "not stated")


def _row(folder: Path, manifest: Manifest) -> tuple[str, ...]:
    files = [folder / file.name for file in manifest.files]
    size = sum(path.stat().st_size for path in files if path.is_file())
    return (
        folder.name,
        manifest.contrast,
        f"x{manifest.scale}",
        lr_of(manifest),
        gain_of(manifest),
        f"{size / 2**20:.1f} MiB",
    )


def lr_of(manifest: Manifest) -> str:
    """The kind of LR that the network was trained for, in one word."""
    return str((manifest.degradation or {}).get("method") or "bicubic") + " LR"


def gain_of(manifest: Manifest) -> str:
    """What it gains over interpolation, from the least to the most over kinds of LR, in dB."""
    gains = sorted(manifest.gains.values())
    if not gains:
        return "not stated"
    if round(gains[0], 2) == round(gains[-1], 2):
        return f"{gains[0]:+.2f} dB"
    return f"{gains[0]:+.2f} to {gains[-1]:+.2f} dB"


def aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows of a table as lines, each column as wide as its widest word.

    >>> aligned([("a", "bc"), ("def", "g")])
    ['a    bc', 'def  g']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
