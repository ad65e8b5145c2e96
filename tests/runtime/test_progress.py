"""A bar on a terminal, nothing in a pipe."""

import io

from poan_runtime.commands.progress import Progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_share_and_time_left_and_is_left_clean() -> None:
    now = iter([0.0, 0.0, 10.0, 10.01, 20.0])
    stream = Terminal()
    progress = Progress("scan.nii", stream, lambda: next(now))
    progress.begin(4)
    progress.advance(1)
    progress.advance(1)  # too soon after the last
    progress.advance(2)
    progress.end()
    drawn = stream.getvalue().split("\r")
    assert drawn[1] == "scan.nii [#######.......................]  25 %  00:30 left"
    assert drawn[2] == "scan.nii [##############################] 100 %  00:00 left"
    assert drawn[3] == "\x1b[K"


def test_a_pipe_gets_nothing() -> None:
    stream = io.StringIO()
    progress = Progress("scan.nii", stream)
    progress.begin(1)
    progress.advance(1)
    progress.end()
    assert stream.getvalue() == ""
