"""Where compiled kernels and timings are kept between runs."""

import functools
import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """``poan`` in the user's cache folder ($XDG_CACHE_HOME, else ~/.cache); made on first use.

    It holds code that is loaded again, so it is its owner's alone (0700). Where it cannot be
    made, it is a temporary folder that goes with the process: the next start is slower.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = (Path(base) if base else Path.home() / ".cache") / "poan"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_mode & 0o077:
            folder.chmod(0o700)
    except (OSError, RuntimeError):  # RuntimeError: nobody's home
        return Path(_scratch().name)
    return folder if os.access(folder, os.W_OK) else Path(_scratch().name)


@functools.cache
def _scratch() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="poan-", ignore_cleanup_errors=True)
