"""The one place where ``tensorrt`` or ``tensorrt_rtx`` is imported; both have the same classes.

A flavour is a value of the manifest, so the import stands in a function.
"""

import dataclasses
import functools
import importlib
from typing import Any, Literal

from poan_runtime import extras
from poan_runtime.engines.nvidia import fitting_extra

Flavour = Literal["tensorrt", "tensorrt-rtx"]
MODULES: dict[str, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
LOG_LINES = 200
"""Lines of the library's log that are kept for error messages."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Library:
    """An imported TensorRT: ``api`` is the module; ``log`` holds what it said of late."""

    flavour: Flavour
    api: Any
    logger: Any
    log: list[tuple[str, str]]

    @property
    def version(self) -> str:
        """As in a manifest, ``1.7.1.116``."""
        return str(self.api.__version__)

    def last_error(self) -> str:
        """The last error in the log, in one line; empty where there is none."""
        errors = [text for severity, text in self.log if "ERROR" in severity]
        return errors[-1].splitlines()[0] if errors else ""


@functools.cache
def load_library(flavour: Flavour) -> Library:
    """Import the library of a flavour; PoanError with the pip command where it is missing.

    Once per process: TensorRT keeps the first logger that it is given, and complains of others.
    """
    with extras.needs(MODULES[flavour], fitting_extra(flavour)):
        api: Any = importlib.import_module(MODULES[flavour])
    log: list[tuple[str, str]] = []

    class KeepsLastLines(api.ILogger):  # type: ignore[misc]
        """Keeps lines in place of printing them; TensorRT calls it from threads of its own."""

        def __init__(self) -> None:
            api.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            log.append((severity.name, message))
            del log[:-LOG_LINES]

    return Library(flavour=flavour, api=api, logger=KeepsLastLines(), log=log)
