"""The one place where ``openvino`` is imported: without its telemetry.

A machine beside a scanner reports to nobody. OpenVINO sends an event when it is imported,
through a package that it can go without; that package is hidden for the length of the import
alone, so that the program around poan keeps it.
"""

import contextlib
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
