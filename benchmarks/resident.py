"""What a program holds once its network is loaded, so that what the run adds can be told apart."""

from pathlib import Path

from poan_runtime.report.memory import peak_memory_bytes

LOADED: dict[str, int] = {}
"""``loaded_bytes``, the resident size at the first `note_loaded`, and ``peak_till_then_bytes``."""


def resident_bytes() -> int:
    """Resident size of this process now (Linux)."""
    status = Path("/proc/self/status").read_text("utf-8")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if "VmRSS" in line)


def note_loaded() -> None:
    """To be called right after the network was loaded, before its first tile.

    The kernel's peak starts anew here, so that a peak of loading does not pass for the run's.
    """
    if LOADED:
        return
    LOADED.update(loaded_bytes=resident_bytes(), peak_till_then_bytes=peak_memory_bytes())
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM


def memory_facts() -> dict[str, int]:
    """``peak_bytes`` of the process; where it noted that it loaded, also what the run added."""
    peak = peak_memory_bytes()
    if not LOADED:
        return {"peak_bytes": peak}
    return {
        "peak_bytes": max(peak, LOADED["peak_till_then_bytes"]),
        "loaded_bytes": LOADED["loaded_bytes"],
        "added_bytes": peak - LOADED["loaded_bytes"],
    }
