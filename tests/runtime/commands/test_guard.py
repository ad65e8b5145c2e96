"""How a command ends, whatever stopped it."""

import errno
import os
import signal

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


def test_an_error_that_a_library_makes_of_ctrl_c_is_an_interrupt(capsys) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def work() -> int:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None
        return 0

    try:
        assert ended(work, capsys) == (130, "poan-x: interrupted\n")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_error_that_a_library_makes_of_sigterm_ends_with_its_number() -> None:
    def work() -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except SystemExit:
            raise ImportError("initialization failed") from None
        return 0

    with pytest.raises(SystemExit) as left:
        guarded("poan-x", work)
    assert left.value.code == 143


def test_a_mistake_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        guarded("poan-x", raising(ZeroDivisionError()))
