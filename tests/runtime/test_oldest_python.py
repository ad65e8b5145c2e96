"""What Python 3.10 lacks, which a Jetson with JetPack 6 has, is used nowhere unguarded."""

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


def test_the_command_starts_in_it(repository: Path) -> None:
    python = shutil.which("python3.10")
    if python is None or subprocess.run([python, "-V"], capture_output=True).returncode:
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
