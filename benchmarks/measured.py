"""Run a module as a program and write down its peak memory and processor time at its end.

    python -m benchmarks.measured OUT.json MODULE ARGUMENTS...

The kernel counts from exec on, so nothing of the parent is in the figures; those of children are
not either. The exit status is the module's.
"""

import json
import runpy
import sys
import time
from pathlib import Path


def main() -> None:
    out, module, *arguments = sys.argv[1:]
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        from poan_runtime.report.memory import peak_memory_bytes

        facts = {"peak_bytes": peak_memory_bytes(), "cpu_s": time.process_time()}
        Path(out).write_text(json.dumps(facts), "utf-8")


if __name__ == "__main__":
    main()
