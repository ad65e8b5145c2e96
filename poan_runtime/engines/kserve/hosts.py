"""Which host gets the next batch: the least busy one that answers.

A host that fails is left out for a while that doubles each time, and must say again what it
serves before it is asked again; one that now serves something else is left out for good. How
many batches are under way on a host follows its latency: one more while that stays within twice
the least seen, one fewer when it does not (more would only wait in the server's queue), and
never more than memory allows.
"""

import dataclasses
import random
import threading
import time
from collections.abc import Callable, Collection, Sequence

from poan_runtime.engines.kserve.transport import Refused, Tiles, Transport, Unreachable
from poan_runtime.errors import PoanError

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
SLOW = 2.0
"""A batch that takes so many times the least latency has waited behind others."""


@dataclasses.dataclass
class Host:
    """One server: what is under way on it, how fast it is, and until when it is left out."""

    transport: Transport
    window: int = 2
    under_way: int = 0
    least_s: float = float("inf")
    failures: int = 0
    out_until: float = 0.0
    lost: str = ""
    """Why it is left out for good."""

    def answered(self, seconds: float, most: int) -> None:
        """Widen or narrow the window by what a batch took."""
        self.failures = 0
        self.least_s = min(self.least_s, seconds)
        step = 1 if seconds <= SLOW * self.least_s else -1
        self.window = max(1, min(most, self.window + step))

    def failed(self) -> None:
        """Leave the host out, each time for about twice as long."""
        pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**self.failures)
        self.failures += 1
        self.window = 1
        self.out_until = time.monotonic() + pause * random.uniform(0.75, 1.25)


class Hosts:
    """Several servers of one model.

    ``check(transport)`` raises Refused where one serves another model; those of ``silent`` have
    not been checked yet. At most ``most`` batches are under way on each.
    """

    def __init__(
        self,
        transports: Sequence[Transport],
        *,
        most: int,
        patience_s: float,
        check: Callable[[Transport], None],
        silent: Collection[int] = (),
    ) -> None:
        self._hosts = [Host(transport) for transport in transports]
        for index in silent:
            self._hosts[index].failed()
        self._closed = False
        self._most = most
        self._patience = patience_s
        self._check = check
        self._changed = threading.Condition()

    def answer(self, batch: Tiles) -> Tiles:
        """A batch's answer from whichever host gives it.

        Raises PoanError once a host refuses it, or none has answered for ``patience_s``.
        """
        end: float | None = None
        while True:
            host = self._take()
            start = time.monotonic()
            try:
                if host.failures and not self._is_ours(host):
                    continue
                answer = host.transport.infer(batch)
            except Unreachable as error:
                self._give_back(host, None)
                end = end or start + self._patience
                if self._closed or time.monotonic() >= end:
                    told = f"{error} (tried for {self._patience:g} s)"
                    raise PoanError(told) from None
            except Refused as error:
                self._give_back(host, None)
                raise PoanError(str(error)) from None
            else:
                self._give_back(host, time.monotonic() - start)
                return answer

    def close(self) -> None:
        """Close all connections; what is under way is not tried again."""
        self._closed = True
        for host in self._hosts:
            host.transport.close()

    def _is_ours(self, host: Host) -> bool:
        """Whether a host that was away still serves the model; else it is left out for good."""
        try:
            self._check(host.transport)
        except Refused as error:
            host.lost = str(error)
            self._give_back(host, None)
            return False
        return True

    def _take(self) -> Host:
        """Wait for a host with room; the one with most of it."""
        with self._changed:
            while True:
                now = time.monotonic()
                if all(host.lost for host in self._hosts):
                    raise PoanError(self._hosts[0].lost)
                free = [
                    host
                    for host in self._hosts
                    if not host.lost and host.out_until <= now and host.under_way < host.window
                ]
                if free:
                    host = max(free, key=lambda host: host.window - host.under_way)
                    host.under_way += 1
                    return host
                waits = [host.out_until - now for host in self._hosts if host.out_until > now]
                self._changed.wait(min(waits, default=None))

    def _give_back(self, host: Host, seconds: float | None) -> None:
        """A batch of the host is over, after ``seconds`` or (None) without an answer."""
        with self._changed:
            host.under_way -= 1
            if seconds is None:
                host.failed()
            else:
                host.answered(seconds, self._most)
            self._changed.notify_all()
