"""Why a contrast of the paper's has no rows here."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from poan_runtime.errors import PoanError
from poan_train.subjects import find_sources


def why_absent(contrasts: Sequence[str], train: Path, val: Path) -> dict[str, str]:
    """The contrasts that cannot be trained and measured, each with the reason."""
    reasons = {}
    for contrast in contrasts:
        for role, folder in (("train", train), ("test", val)):
            try:
                find_sources(folder, contrast)
            except PoanError:
                reasons[contrast] = f"no {contrast} volume among those to {role} on"
    return reasons


def write_absent(folder: Path, reasons: Mapping[str, str]) -> None:
    """Keep the reasons beside the rows."""
    if reasons:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "absent.json").write_text(json.dumps(reasons, indent=1) + "\n")


def read_absent(folder: Path) -> dict[str, str]:
    path = folder / "absent.json"
    found: dict[str, str] = json.loads(path.read_text()) if path.is_file() else {}
    return found
