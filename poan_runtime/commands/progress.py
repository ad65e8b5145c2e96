"""A progress bar with the time left, on a terminal; nothing in a pipe."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

WIDTH = 30
INTERVAL_S = 0.1


class Progress:
    """Counts finished tiles of one scan and draws a bar on ``stream`` if it is a terminal.

    Skipped tiles take no time, so the time left follows the whole pace, not the last tiles.
    """

    def __init__(
        self,
        label: str,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label = label
        self._stream = stream if stream is not None else sys.stderr
        self._clock = clock
        self._shown = self._stream.isatty()
        self._start = clock()
        self._drawn = -INTERVAL_S
        self._total = 0
        self._done = 0

    def begin(self, total: int) -> None:
        """How many tiles there are."""
        self._total = total
        self._start = self._clock()

    def advance(self, count: int) -> None:
        """``count`` more are finished."""
        self._done += count
        now = self._clock()
        if self._shown and (now - self._drawn >= INTERVAL_S or self._done == self._total):
            self._drawn = now
            self._stream.write(f"\r{bar(self._label, self._done, self._total, now - self._start)}")
            self._stream.flush()

    def end(self) -> None:
        """Clear the line."""
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def bar(label: str, done: int, total: int, elapsed_s: float) -> str:
    """One line of progress.

    >>> bar("scan.nii", 30, 120, 10.0)
    'scan.nii [#######.......................]  25 %  00:30 left'
    """
    share = done / total if total else 1.0
    filled = int(WIDTH * share)
    left = elapsed_s * (1 - share) / share if share else 0.0
    minutes, seconds = divmod(round(left), 60)
    return (
        f"{label} [{'#' * filled}{'.' * (WIDTH - filled)}] {share:4.0%} ".replace("%", " %")
        + f" {minutes:02d}:{seconds:02d} left"
    )
