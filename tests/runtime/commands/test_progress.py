"""A bar on a terminal, nothing in a pipe."""

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


def test_a_pipe_gets_nothing() -> None:
    stream = io.StringIO()
    progress = Progress("scan.nii", stream)
    progress.advance(1, 1)
    progress.end()
    assert stream.getvalue() == ""
