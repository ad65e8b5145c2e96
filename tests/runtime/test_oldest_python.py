"""What Python 3.10 lacks, which a Jetson with JetPack 6 has, is used nowhere unguarded."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

LACKS = r"hashlib\.file_digest|datetime\.UTC|StrEnum|asyncio\.(timeout|TaskGroup)|\bexcept\*"
LACKS += r"|contextlib\.chdir|import .*\bSelf\b|ExceptionGroup"
GUARDED = "if sys.version_info >= (3, 11):\n    import tomllib\nelse:\n    import tomli as tomllib"


def test_nothing_that_it_lacks_is_used(repository: Path) -> None:
    for package in ("poan_runtime", "poan_train", "poan_export"):
        for path in (repository / package).rglob("*.py"):
            source = path.read_text()
            assert re.search(LACKS, source) is None, path
            assert "import tomllib" not in source.replace(GUARDED, ""), path


def said(command: list[str], **variables: str) -> str:
    """What a command prints; nothing where it fails or is not there."""
    if shutil.which(command[0]) is None:
        return ""
    environment = {**os.environ, **variables}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return "" if done.returncode else done.stdout


def oldest_python() -> str | None:
    """A Python 3.10 that starts: of the path, or one that pyenv has behind its shim."""
    where = ["python3.10", "-c", "import sys; print(sys.executable)"]
    others = [v for v in said(["pyenv", "versions", "--bare"]).split() if v.startswith("3.10.")]
    found = [said(where), *(said(where, PYENV_VERSION=version) for version in others)]
    return next((path.strip() for path in found if path), None)


def test_the_command_starts_in_it(repository: Path) -> None:
    python = oldest_python()
    if python is None:
        pytest.skip("there is no python3.10 here")
    done = subprocess.run(
        [python, "-m", "poan_runtime", "--help"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Super-resolve MR scans" in done.stdout
