"""What the programs of pyproject.toml have in common."""

import importlib
import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
QUIET = {"poan-run", "poan-bids", "poan-train", "poan-export"}
"""Those that say how far they are."""


def main_of(program: str) -> Callable[[list[str]], int]:
    module, _, name = PROJECT["scripts"][program].partition(":")
    main: Callable[[list[str]], int] = getattr(importlib.import_module(module), name)
    return main


@pytest.mark.parametrize("program", PROJECT["scripts"])
def test_every_program_tells_its_version(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main_of(program)(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"{program} {metadata.version('poan')}\n"


@pytest.mark.parametrize("program", PROJECT["scripts"])
def test_programs_that_say_how_far_they_are_have_quiet(
    program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main_of(program)(["--help"])
    assert ("--quiet" in capsys.readouterr().out) == (program in QUIET)


def test_the_changelog_begins_with_the_version_that_this_is() -> None:
    heading = re.search(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heading is not None
    unreleased = heading[1].startswith("Unreleased: ")
    number = heading[1].removeprefix("Unreleased: ")
    assert PROJECT["version"] == (f"{number}.0.dev0" if unreleased else number)


def test_the_plain_install_is_pinned_and_every_file_has_its_hash() -> None:
    text = (ROOT / "requirements/plain.txt").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert [line for line in lines if not re.match(r"[\w-]+==[\w.]+ .*--hash=sha256:", line)] == []
    pinned = {line.partition("==")[0] for line in lines}
    wanted = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["cpu"]
    assert {re.split(r"[><=]", one)[0] for one in wanted} <= pinned
