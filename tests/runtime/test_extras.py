"""The pip command for what is missing fits how poan was installed."""

from pathlib import Path

import pytest

from poan_runtime import extras
from poan_runtime.errors import PoanError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").touch()
    return tmp_path


def pip_says(monkeypatch: pytest.MonkeyPatch, origin: dict[str, object]) -> None:
    monkeypatch.setattr(extras, "__file__", "/usr/lib/python3/site-packages/poan_runtime/extras.py")
    monkeypatch.setattr(extras, "_origin", lambda: origin)


CLONE = "in a clone of poan's repository"
"""poan is on no index: what is called so there is somebody else's."""


def test_from_nowhere_a_clone_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    pip_says(monkeypatch, {})
    assert extras.command("cpu", "dicom") == f"pip install '.[cpu,dicom]' {CLONE}"


def test_from_a_checkout_the_folder_is_named(monkeypatch: pytest.MonkeyPatch, tree: Path) -> None:
    pip_says(monkeypatch, {"url": tree.as_uri()})
    assert extras.command("cpu") == f"pip install '{tree}[cpu]'"
    monkeypatch.chdir(tree)
    assert extras.command("cpu") == "pip install '.[cpu]'"


def test_from_a_wheel_its_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    packed = tmp_path / "poan-0.1.0-py3-none-any.whl"
    packed.touch()
    pip_says(monkeypatch, {"url": packed.as_uri(), "archive_info": {}})
    assert extras.command("dicom") == f"pip install '{packed}[dicom]'"
    packed.unlink()
    assert extras.command("dicom") == f"pip install '.[dicom]' {CLONE}"


def test_an_editable_install_stays_one(monkeypatch: pytest.MonkeyPatch, tree: Path) -> None:
    pip_says(monkeypatch, {"url": tree.as_uri(), "dir_info": {"editable": True}})
    monkeypatch.chdir(tree)
    assert extras.command("cpu") == "pip install -e '.[cpu]'"


def test_of_a_checkout_that_is_gone_a_clone_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pip_says(monkeypatch, {"url": (tmp_path / "gone").as_uri()})
    assert extras.command("cpu") == f"pip install '.[cpu]' {CLONE}"


def test_only_the_module_that_was_asked_about_is_mended() -> None:
    with (
        pytest.raises(PoanError, match=r"not_there is missing; run: pip install .*\[cpu\]'"),
        extras.needs("not_there", "cpu"),
    ):
        raise ModuleNotFoundError(name="not_there")
    with pytest.raises(ModuleNotFoundError), extras.needs("not_there", "cpu"):
        raise ModuleNotFoundError(name="its_dependency")
