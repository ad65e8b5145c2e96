"""Where compiled kernels and timings are kept between runs."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """``poan`` in the user's cache folder ($XDG_CACHE_HOME, else ~/.cache); made on first use."""
    base = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(base) if base else Path.home() / ".cache") / "poan"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
