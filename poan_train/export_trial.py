"""Would poan-export take this network? Asked of a process of its own while the data are read.

The trainer does not import the exporter, and trains without it.
"""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

from poan_train.checkpoint import Facts

NEEDS = ("poan_export", "onnx", "onnxscript")


@contextlib.contextmanager
def export_trial(facts: Facts) -> Iterator[Callable[[], str | None]]:
    """Begin to export one tile of fresh weights; a function that waits for it.

    It returns what poan-export would refuse the network for, None where it would take it or is
    not installed.
    """
    if any(importlib.util.find_spec(name) is None for name in NEEDS):
        yield lambda: None
        return
    child = subprocess.Popen(
        [sys.executable, "-m", "poan_export.trial"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
    )
    with child:
        _ask(child, json.dumps({"arch": facts.arch, "network": facts.network}))
        try:
            yield lambda: _refusal(child)
        finally:
            child.kill()


def _ask(child: "subprocess.Popen[str]", asked: str) -> None:
    """Send the question, all of it, so that the child begins."""
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        child.stdin.write(asked)
        child.stdin.close()
    child.stdin = None


def _refusal(child: "subprocess.Popen[str]") -> str | None:
    said = child.communicate()[1].strip().splitlines()
    if child.returncode == 0:
        return None
    return said[-1] if said else f"poan-export would end with status {child.returncode}"
