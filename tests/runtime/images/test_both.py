"""Two outputs of one run."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from poan_runtime.errors import PoanError
from poan_runtime.geometry import Geometry
from poan_runtime.images.both import Both
from poan_runtime.images.nifti.header import plain_header
from poan_runtime.images.nifti.write import NiftiSink
from poan_runtime.images.source import ArraySink
from tests.runtime.images.conformance import SHAPE, check_sink


def nifti(path: Path) -> NiftiSink:
    return NiftiSink(path, plain_header(SHAPE, np.dtype(np.float32), np.eye(4)), note="")


def test_both_hold_what_one_would(tmp_path: Path) -> None:
    paths = tmp_path / "a.nii", tmp_path / "b.nii"

    def read() -> np.ndarray | None:
        there = [path for path in paths if path.exists()]
        assert len(there) in (0, 2)
        found = [np.asarray(nib.load(path).dataobj) for path in there]
        if not found:
            return None
        assert np.array_equal(*found)
        return found[0]

    def make() -> Both:
        for path in paths:
            path.unlink(missing_ok=True)
        return Both(nifti(paths[0]), nifti(paths[1]))

    check_sink(make, read)


def test_a_second_output_that_fails_says_that_the_first_is_there(tmp_path: Path) -> None:
    class Full(ArraySink):
        def finish(self, remark: str | None = None) -> None:
            raise PoanError("b: cannot be written: No space left on device")

    sink = Both(ArraySink(), Full())
    sink.begin(Geometry.derive((4, 4, 2), np.eye(4), scale=2, grid="centre"))
    with pytest.raises(PoanError, match=r"No space left on device; the other output is complete"):
        sink.finish()
