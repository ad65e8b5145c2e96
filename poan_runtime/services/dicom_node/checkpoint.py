"""The place where pynetdicom's reactor stands still while one of us waits for an answer.

pynetdicom 3.0.4 asks its reactor to stop and takes a flag for the stop that the reactor sets just
before it looks whether it must. A reactor that had looked already goes on, takes the peer's answer
for a request that it does not know and throws it away (pynetdicom, issue 875): on a busy machine
some sends in a thousand then wait in vain until their time is up.
"""

import threading

LONGEST_S = 1.0
"""A reactor that has ended, or that serves a request of the peer's, is not waited for longer."""


class Checkpoint(threading.Event):
    """An event whose ``clear`` returns once who waits for it stands at it, and cannot pass."""

    def __init__(self) -> None:
        super().__init__()
        self._moved = threading.Condition()
        self._open, self._standing = True, False

    def is_set(self) -> bool:
        """Whether the reactor may pass."""
        return self._open

    def set(self) -> None:
        """Let the reactor pass."""
        with self._moved:
            self._open = True
            self._moved.notify_all()

    def clear(self) -> None:
        """Stop the reactor, and wait until it stands."""
        with self._moved:
            self._open = False
            self._moved.wait_for(lambda: self._standing, LONGEST_S)

    def wait(self, timeout: float | None = None) -> bool:
        """What the reactor calls each time round."""
        with self._moved:
            self._standing = True
            self._moved.notify_all()
            passed = self._moved.wait_for(lambda: self._open, timeout)
            self._standing = False
        return passed
