"""Run a module as a program and write down its peak memory and processor time at its end.

    python -m benchmarks.measured OUT.json MODULE ARGUMENTS...

The kernel counts from exec on, so nothing of the parent is in the figures; those of children are
not either. ``loaded_bytes`` is the resident size right after the network was loaded (where
`load_network` returned, or the module called `note_loaded`), ``added_bytes`` what the run took
above it. The exit status is the module's.
"""

import functools
import json
import runpy
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.resident import memory_facts, note_loaded


def main() -> None:
    out, module, *arguments = sys.argv[1:]
    sys.argv = [module, *arguments]
    note_what_load_network_leaves()
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        facts = {**memory_facts(), "cpu_s": time.process_time()}
        Path(out).write_text(json.dumps(facts), "utf-8")


def note_what_load_network_leaves() -> None:
    """Have poan-run, which imports `load_network` after this, note its memory behind it."""
    from poan_runtime import network

    load = network.load_network

    @functools.wraps(load)
    def noting(*arguments: Any, **named: Any) -> network.Network:
        loaded = load(*arguments, **named)
        note_loaded()
        return loaded

    network.load_network = noting


if __name__ == "__main__":
    main()
