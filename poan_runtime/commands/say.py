"""What the commands say: whole lines, as loud as was asked for, safe for a terminal and a log."""

import sys
from collections.abc import Sequence
from typing import TextIO

QUIET, NORMAL, VERBOSE = -1, 0, 1


class Voice:
    """Writes a command's lines: results on stdout, warnings and errors on stderr.

    ``level`` is `QUIET` (warnings and errors alone), `NORMAL` or `VERBOSE`.
    """

    def __init__(self, command: str, level: int = NORMAL) -> None:
        self.command = command
        self.level = level

    def say(self, line: str) -> None:
        """A line for everybody who did not ask for quiet."""
        if self.level >= NORMAL:
            write_line(line, sys.stdout)

    def detail(self, line: str) -> None:
        """A line that --verbose shows."""
        if self.level >= VERBOSE:
            write_line(line, sys.stdout)

    def warn(self, line: str) -> None:
        """What is odd but harmless."""
        write_line(f"{self.command}: warning: {line}", sys.stderr)

    def error(self, line: str) -> None:
        """What went wrong."""
        write_line(f"{self.command}: {line}", sys.stderr)


def write_line(line: str, stream: TextIO) -> None:
    """Write one line: no name in it breaks it in two, and no terminal is too narrow for it."""
    stream.write(fitting(printable(line), stream) + "\n")
    stream.flush()


def printable(text: str) -> str:
    r"""The text with what a terminal would obey or could not show written as an escape.

    >>> printable("a\nb\x1b[31m.nii")
    'a\\nb\\x1b[31m.nii'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def fitting(text: str, stream: TextIO) -> str:
    """The text in characters that the stream's encoding has; others as escapes."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def level_of(*, quiet: bool, verbose: bool) -> int:
    """The loudness that two flags ask for."""
    return QUIET if quiet else VERBOSE if verbose else NORMAL


def few(names: Sequence[object], most: int = 3) -> str:
    """The first names, and how many more there are.

    >>> few(["a", "b", "c", "d"], most=2)
    'a, b and 2 more'
    """
    shown = ", ".join(map(str, names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
