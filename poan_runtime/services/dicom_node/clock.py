"""Time that does not jump, for everything that waits; the wall clock only dates what is made."""

import time

from pynetdicom import dul
from pynetdicom.timer import Timer

_STARTED_S = time.time() - time.monotonic()


def steady_s() -> float:
    """Seconds since the epoch by the wall clock as it stood at the start; never set since.

    Moments of this clock are kept in the queue, so that they mean something to the next process.
    """
    return _STARTED_S + time.monotonic()


class SteadyTimer(Timer):
    """pynetdicom's timer, which reads the wall clock, on the steady one."""

    def start(self) -> None:
        """Begin anew."""
        self._start_time, self._end_time = time.monotonic(), None

    def stop(self) -> None:
        """Hold it."""
        self._end_time = time.monotonic()

    @property
    def remaining(self) -> float:
        """Seconds left; 1 where it never expires."""
        if self.timeout is None:
            return 1
        if self._start_time is None:
            return self.timeout
        end = time.monotonic() if self._end_time is None else self._end_time
        return self.timeout - (end - self._start_time)


dul.Timer = SteadyTimer  # type: ignore[attr-defined]
