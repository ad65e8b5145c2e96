"""poan's own commands as a user types them, and what they said."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def poan(command: str, *arguments: object) -> dict[str, Any]:
    """Run ``poan-COMMAND``; status and output."""
    done = subprocess.run(
        [sys.executable, "-m", f"poan_runtime.commands.{command}", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    said = (done.stdout + done.stderr).strip().splitlines()
    return {"command": f"poan-{command}", "status": done.returncode, "said": said[-40:]}


def bench(model: Path | str, *arguments: object) -> dict[str, Any]:
    """``poan-bench`` on the GPU; its figures without the raw samples."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "bench.json"
        done = poan("bench", model, "--device", "cuda", "--json", out, *arguments)
        if out.is_file():
            document = json.loads(out.read_text("utf-8"))
            for entry in document["models"]:
                entry.pop("samples_ms")
            done["document"] = document
    return done


def failures(*steps: dict[str, Any]) -> list[str]:
    """Commands that did not end well."""
    return [step["command"] for step in steps if step["status"] != 0]
