"""How the commands that need torch start: without it, and by the name of their package."""

import subprocess
import sys
from pathlib import Path

import pytest

from poan_runtime import extras


@pytest.mark.parametrize(
    ("module", "name", "arguments"),
    [
        ("poan_train.start", "train", ["-h"]),
        ("poan_train.start", "evaluate", ["-h"]),
        ("poan_export.cli", "main", ["--ckpt", "a.pt"]),
    ],
)
def test_without_torch_a_command_is_one_line_that_mends_it(
    module: str, name: str, arguments: list[str]
) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        f"from {module} import {name}\nsys.exit({name}({arguments!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "torch is missing; run: pip install torch==2.13.0 && pip install" in done.stderr
    assert "[train,export]'" in done.stderr


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_the_version_is_told_without_torch(name: str) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        f"from poan_train.start import {name}\nsys.exit({name}(['--version']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("poan-train " if name == "train" else "poan-eval ")


@pytest.mark.parametrize("page", ["README.md", "docs/training.md", "Makefile"])
def test_the_torch_that_a_page_installs_is_the_one_that_a_command_names(
    page: str, repository: Path
) -> None:
    assert extras.FIRST["torch"] in (repository / page).read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    ["poan_train", "poan_train.cli", "poan_train.evaluate", "poan_export", "poan_export.cli"],
)
def test_a_package_runs_by_its_name(module: str, repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--nonsense"],
        capture_output=True,
        text=True,
        check=False,
        cwd=repository,
    )
    assert done.returncode == 2
    assert "--nonsense" in done.stderr or "required" in done.stderr
    assert "Traceback" not in done.stderr
