"""A progress bar with the time left, on a terminal; nothing in a pipe."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

from poan_runtime.geometry import Geometry
from poan_runtime.super_resolve import Pair

WIDTH = 30


class Progress:
    """Counts finished slices of one scan and draws a bar on ``stream`` if it is a terminal.

    Skipped tiles take no time, so the time left follows the whole pace, not the last slices.
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
        self._done = 0

    def __call__(self, geometry: Geometry, pair: Pair) -> None:
        """One more slab is finished; a `poan_runtime.super_resolve.Consumer`."""
        self.advance(len(pair.lr), geometry.volumes * geometry.slices)

    def advance(self, count: int, total: int) -> None:
        """``count`` more of ``total`` slices are finished."""
        self._done += count
        if self._shown:
            line = bar(self._label, self._done, total, self._clock() - self._start)
            self._stream.write(f"\r{line}")
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
    drawn = "#" * filled + "." * (WIDTH - filled)
    return f"{label} [{drawn}] {100 * share:3.0f} %  {minutes:02d}:{seconds:02d} left"
