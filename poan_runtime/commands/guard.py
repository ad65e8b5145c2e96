"""How a command ends: one line and a status for what the user can mend, whatever stopped it."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from poan_runtime.commands.say import Voice
from poan_runtime.errors import PoanError

INTERRUPTED, NOBODY_READS = 130, 141
A_MOMENT = 0.01
"""Seconds, after which the callback is over."""


def guarded(command: str, work: Callable[[], int]) -> int:
    """The status of ``work``: its own, 130 for Ctrl-C, and 2 with a line for a PoanError or for
    what the operating system refuses.

    141 where nobody reads what is printed (``| head``); SIGTERM ends the process with 143 after
    temporary files are gone.
    """
    voice = Voice(command)
    interrupts: list[int] = []
    try:
        with terminated_as_exit(interrupts), noted(interrupts), sent_again(interrupts):
            return work()
    except PoanError as error:
        voice.error(str(error))
        return 2
    except KeyboardInterrupt:
        voice.error("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        _write_nowhere()
        return NOBODY_READS
    except Exception as error:
        if signal.SIGTERM in interrupts:  # a library that was starting made another error of it
            raise SystemExit(128 + signal.SIGTERM) from None
        if interrupts:
            voice.error("interrupted")
            return INTERRUPTED
        if not isinstance(error, OSError):
            raise
        voice.error(in_words(error))
        return 2


@contextlib.contextmanager
def noted(interrupts: list[int]) -> Iterator[None]:
    """Note each Ctrl-C beside raising KeyboardInterrupt, where Python's own handler is in place."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    try:
        signal.signal(signal.SIGINT, note)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def sent_again(interrupts: list[int]) -> Iterator[None]:
    """Send a signal again that came while Python ran a callback that must not raise.

    There (a weak reference's, a finaliser's) the exception would be printed and lost.
    """
    before = sys.unraisablehook

    def again(lost: "sys.UnraisableHookArgs") -> None:
        if not (interrupts and issubclass(lost.exc_type, KeyboardInterrupt | SystemExit)):
            before(lost)
            return
        threading.Timer(A_MOMENT, os.kill, (os.getpid(), interrupts[-1])).start()

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before


def in_words(error: PoanError | OSError) -> str:
    """What went wrong, and with which file."""
    if isinstance(error, PoanError) or not error.strerror:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


@contextlib.contextmanager
def terminated_as_exit(interrupts: list[int] | None = None) -> Iterator[None]:
    """Let SIGTERM end the process as an exception does, so that temporary files go.

    It is noted in ``interrupts`` as well.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        if interrupts is not None:
            interrupts.append(number)
        raise SystemExit(128 + number)

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread: signals are the host program's business
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _write_nowhere() -> None:
    """Give what is left in stdout's buffer away, or Python complains about it at the end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
