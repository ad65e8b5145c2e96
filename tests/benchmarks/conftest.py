"""The tiny network that the benchmarks measure."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny(tiny_export: tuple[Path, Path]) -> tuple[Path, Path]:
    """Checkpoint and exported folder of a network x2 with eight channels; not to be changed."""
    return tiny_export
