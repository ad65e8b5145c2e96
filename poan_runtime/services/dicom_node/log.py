"""One line of JSON for each event, without patient data.

Series and instances are named by short digests of their UIDs, which `poan-node status` shows too.
"""

import datetime
import hashlib
import json
import sys
import threading
import warnings
from typing import TextIO


def short(uid: str) -> str:
    """A name for a UID that tells nothing about it.

    >>> short("1.2.3")
    'c47f5b18b8a4'
    """
    return hashlib.sha256(uid.encode()).hexdigest()[:12]


class Log:
    """Writes events to a stream (standard error), from any thread."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def __call__(self, event: str, **facts: object) -> None:
        """Write one event; facts are numbers, states, names from the configuration."""
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event, **facts}, default=str)
        with self._lock:
            stream = self._stream or sys.stderr
            stream.write(line + "\n")
            stream.flush()


def silence_libraries() -> None:
    """Keep what pydicom remarks off standard error: it quotes odd values, and so patients.

    Its loggers are closed where it is imported; warnings have one switch for the whole process.
    """
    warnings.simplefilter("ignore")
