"""How far a scan is: a bar with the time left on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

from poan_runtime.commands.say import fitting, printable, write_line
from poan_runtime.geometry import Geometry
from poan_runtime.super_resolve import Pair

WIDTH = 30
EVERY_PERCENT = 10
SHORTEST_S = 5.0
"""A line in a log is worth it only for a scan that takes longer than this."""


class Progress:
    """Counts finished slices of one scan and shows it on ``stream``, unless ``quiet``.

    On a terminal that is a bar, elsewhere a line every 10 %. Skipped tiles take no time, so the
    time left follows the whole pace, not the last slices.
    """

    def __init__(
        self,
        label: str,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        quiet: bool = False,
    ) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._label = fitting(printable(label), self._stream)
        self._clock = clock
        self._quiet = quiet
        self._terminal = self._stream.isatty() and not quiet
        self._start = clock()
        self._done = 0
        self._said = 0

    def __call__(self, geometry: Geometry, pair: Pair) -> None:
        """One more slab is finished; a `poan_runtime.super_resolve.Consumer`."""
        self.advance(len(pair.lr), geometry.volumes * geometry.slices)

    def advance(self, count: int, total: int) -> None:
        """``count`` more of ``total`` slices are finished."""
        self._done += count
        if self._quiet:
            return
        elapsed = self._clock() - self._start
        if self._terminal:
            self._stream.write(f"\r{bar(self._label, self._done, total, elapsed)}")
            self._stream.flush()
        else:
            self._log(total, elapsed)

    def end(self) -> None:
        """Clear the line."""
        if self._terminal:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def _log(self, total: int, elapsed: float) -> None:
        tenths = 100 * self._done // (EVERY_PERCENT * total)
        if tenths > self._said and self._done < total and elapsed >= SHORTEST_S:
            self._said = tenths
            left = time_left(self._done / total, elapsed)
            write_line(f"{self._label}: {EVERY_PERCENT * tenths} %, {left} left", self._stream)


def bar(label: str, done: int, total: int, elapsed_s: float) -> str:
    """One line of progress.

    >>> bar("scan.nii", 30, 120, 10.0)
    'scan.nii [#######.......................]  25 %  00:30 left'
    """
    share = done / total if total else 1.0
    filled = int(WIDTH * share)
    drawn = "#" * filled + "." * (WIDTH - filled)
    return f"{label} [{drawn}] {100 * share:3.0f} %  {time_left(share, elapsed_s)} left"


def time_left(share: float, elapsed_s: float) -> str:
    """Minutes and seconds until a run is done at its pace so far."""
    left = elapsed_s * (1 - share) / share if share else 0.0
    minutes, seconds = divmod(round(left), 60)
    return f"{minutes:02d}:{seconds:02d}"
