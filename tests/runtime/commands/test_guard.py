"""How a command ends, whatever stopped it."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from poan_runtime.commands.guard import guarded
from poan_runtime.errors import PoanError


def ended(work, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    return guarded("poan-x", work), capsys.readouterr().err


def raising(error: BaseException):
    def work() -> int:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (PoanError("mend it"), 2, "poan-x: mend it\n"),
        (OSError(errno.ESTALE, "Stale file handle", "a.nii"), 2, "poan-x: a.nii: Stale file"),
        (KeyboardInterrupt(), 130, "poan-x: interrupted\n"),
    ],
)
def test_what_stops_a_command_is_one_line(error, status, line, capsys) -> None:
    code, said = ended(raising(error), capsys)
    assert code == status
    assert said.startswith(line)
    assert said.count("\n") == 1


IN_A_PROCESS = """
import os, signal, sys
from poan_runtime.commands.guard import guarded
def work():
    try:
        os.kill(os.getpid(), signal.{name})
    except BaseException:
        raise ImportError("initialization failed") from None
signal.signal(signal.SIGINT, signal.default_int_handler)
code = guarded("poan-x", work)
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("name", "status", "line"),
    [("SIGINT", 130, "poan-x: interrupted\n"), ("SIGTERM", 143, "")],
)
def test_an_error_that_a_library_makes_of_a_signal_ends_as_the_signal_does(
    name: str, status: int, line: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS.format(name=name)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (status, line)


def test_a_mistake_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        guarded("poan-x", raising(ZeroDivisionError()))


LOST = """
import os, signal, sys, time, weakref
from poan_runtime.commands.guard import guarded

signal.signal(signal.SIGINT, signal.default_int_handler)

class Thing:
    pass

def work():
    thing = Thing()
    kept = weakref.ref(thing, lambda _: os.kill(os.getpid(), int(sys.argv[1])))
    del thing
    time.sleep(20)
    return 0

raise SystemExit(guarded("poan-run", work))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("number", "status", "said"),
    [(signal.SIGTERM, 143, ""), (signal.SIGINT, 130, "poan-run: interrupted\n")],
)
def test_a_signal_within_a_callback_ends_the_command_without_a_traceback(
    number: signal.Signals, status: int, said: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOST, str(int(number))],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (status, said)
