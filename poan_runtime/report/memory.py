"""How much memory this process has taken."""

import ctypes
import sys
from pathlib import Path


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far.

    Linux tells it since exec; getrusage also counts what the parent held before (in KiB; macOS in
    bytes). Windows has a call of its own.
    """
    try:
        status = Path("/proc/self/status").read_text("utf-8")
    except OSError:
        return _of_windows() if sys.platform == "win32" else _by_getrusage()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line)


def _by_getrusage() -> int:
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class _Counters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS of psapi.h."""

    _fields_ = (
        ("size", ctypes.c_ulong),
        ("page_faults", ctypes.c_ulong),
        ("peak_working_set", ctypes.c_size_t),
        *((f"other_{index}", ctypes.c_size_t) for index in range(7)),
    )


def _of_windows() -> int:
    counters = _Counters(size=ctypes.sizeof(_Counters))
    kernel = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined,unused-ignore]
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    process = ctypes.c_void_p(kernel.GetCurrentProcess())
    if not kernel.K32GetProcessMemoryInfo(process, ctypes.byref(counters), counters.size):
        return 0
    return int(counters.peak_working_set)
