"""How much memory this process has taken."""

import resource
import sys
from pathlib import Path


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far.

    Linux tells it since exec; getrusage also counts what the parent held before (in KiB; macOS in
    bytes).
    """
    try:
        status = Path("/proc/self/status").read_text("utf-8")
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line)
