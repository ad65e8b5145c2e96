"""A bar on a terminal, a line every 10 % in a log."""

import io

import numpy as np

from poan_runtime.commands.progress import Progress, bar
from poan_runtime.geometry import Geometry
from poan_runtime.super_resolve import Pair


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_share_and_time_left_and_is_left_clean() -> None:
    now = iter([0.0, 10.0, 20.0])
    stream = Terminal()
    progress = Progress("scan.nii", stream, lambda: next(now))
    progress.advance(1, 4)
    progress.advance(3, 4)
    progress.end()
    drawn = stream.getvalue().split("\r")
    assert drawn[1] == "scan.nii [#######.......................]  25 %  00:30 left"
    assert drawn[2] == "scan.nii [##############################] 100 %  00:00 left"
    assert drawn[3] == "\x1b[K"


def test_a_slab_counts_its_slices_of_all_volumes() -> None:
    stream = Terminal()
    progress = Progress("scan.nii", stream, lambda: 0.0)
    geometry = Geometry.derive((4, 4, 6, 2), np.eye(4), scale=2, grid="centre", axis=2)
    slab = np.zeros((3, 4, 4), np.float32)
    progress(geometry, Pair(0, 0, slab, slab.repeat(2, 1).repeat(2, 2)))
    assert " 25 % " in stream.getvalue()


def test_a_per_cent_sign_in_a_files_name_stays_as_it_is() -> None:
    assert bar("50%done.nii", 1, 2, 1.0).startswith("50%done.nii [")


def test_a_log_gets_a_line_every_ten_per_cent_of_a_long_scan() -> None:
    now = iter([0.0, *(10.0 * k for k in range(1, 41))])
    stream = io.StringIO()
    progress = Progress("scan.nii", stream, lambda: next(now))
    for _ in range(40):
        progress.advance(1, 40)
    progress.end()
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == [str(p) for p in range(10, 100, 10)]
    assert lines[4] == "scan.nii: 50 %, 03:20 left"


def test_a_log_gets_nothing_of_a_short_scan_and_quiet_nothing_at_all() -> None:
    for quiet, seconds in ((False, 0.1), (True, 100.0)):
        now = iter([0.0, seconds, 2 * seconds])
        stream = io.StringIO()
        progress = Progress("scan.nii", stream, lambda: next(now), quiet=quiet)  # noqa: B023
        progress.advance(1, 2)
        progress.advance(1, 2)
        progress.end()
        assert stream.getvalue() == ""
