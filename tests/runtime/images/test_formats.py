"""The table of formats: every name that it holds is read, written and told apart by it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from poan_runtime.commands.outputs import scans_of, stem_of
from poan_runtime.commands.run import main
from poan_runtime.errors import PoanError
from poan_runtime.images.formats import FORMATS, FOUND, READ, WRITTEN, open_sink
from poan_runtime.images.source import ArraySource


def test_what_is_found_or_written_is_also_read() -> None:
    for format in FORMATS:
        assert set(format.found) | set(format.written) <= set(format.read)


@pytest.mark.parametrize("ending", READ)
def test_an_ending_that_is_read_is_taken_off_a_results_name(ending: str) -> None:
    assert stem_of(Path(f"scan{ending}")) == "scan"
    assert stem_of(Path(f"SCAN{ending.upper()}")) == "SCAN"


def test_a_folder_gives_the_scans_whose_endings_are_found(tmp_path: Path) -> None:
    for ending in READ:
        (tmp_path / f"scan{ending}").touch()
    assert {path.name for path in scans_of([str(tmp_path)])} == {f"scan{end}" for end in FOUND}


@pytest.mark.parametrize("ending", WRITTEN)
def test_an_ending_that_is_written_has_a_sink(ending: str, tmp_path: Path) -> None:
    source = ArraySource(np.zeros((4, 4, 2), np.float32), np.eye(4))
    open_sink(tmp_path / f"fine{ending}", source, note="x").close()


@pytest.mark.parametrize("ending", sorted({*READ, ".nrrd", ".NII"} - {*WRITTEN}))
def test_another_ending_is_refused_as_an_output(
    ending: str,
    nearest_x2: Path,
    make_scan: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = tmp_path / f"fine{ending}"
    with pytest.raises(PoanError, match=r"expected a name that ends in \.nii or \.nii\.gz$"):
        open_sink(target, ArraySource(np.zeros((4, 4, 2), np.float32), np.eye(4)), note="x")
    assert main([str(nearest_x2), str(make_scan()), "-o", str(target)]) == 2
    assert f"{target}: expected a name that ends in .nii or .nii.gz" in capsys.readouterr().err
    assert not target.exists()
