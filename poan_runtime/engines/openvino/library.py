"""The one place where ``openvino`` is imported: without its telemetry.

A machine beside a scanner reports to nobody. OpenVINO sends an event when it is imported,
through a package that it can go without; that package is hidden for the length of the import
alone, so that the program around poan keeps it.
"""

import contextlib
import functools
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def hidden(module: str) -> Iterator[None]:
    """Let ``module`` look uninstalled inside the block."""
    was_there, before = module in sys.modules, sys.modules.get(module)
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]
        if was_there:
            sys.modules[module] = before  # type: ignore[assignment]


with hidden("openvino_telemetry"):
    import openvino as openvino


@functools.cache
def core() -> openvino.Core:
    """The one core of this process, kept until it ends.

    OpenVINO's plug-in for CPUs gives the thread that loads it a stack for signal handlers, and
    frees it when the last core goes. Should that happen in another thread, the first keeps a stack
    that is no more: the next signal, be it Ctrl-C, would end the process in a segmentation fault.
    """
    return openvino.Core()
