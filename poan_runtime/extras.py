"""A missing optional package becomes the pip command that installs it."""

import contextlib
import json
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlparse

from poan_runtime.errors import PoanError

FIRST = {"torch": "torch==2.13.0"}
"""What is pinned and installed first: for the range of an extra pip may fetch another build."""


def poan_version() -> str:
    """The installed version, or ``source``."""
    try:
        return metadata.version("poan")
    except metadata.PackageNotFoundError:
        return "source"


def command(*extras: str) -> str:
    """The pip command that adds extras, fit for how poan was installed.

    From a source checkout, whose name on an index may be somebody else's, that is ``pip install
    '/path/to/checkout[cpu]'``, from a wheel ``pip install '/path/to/poan.whl[cpu]'``. Where
    neither is there any more it is a clone that is told of, never a name on an index.
    """
    folder, packed = checkout(), wheel()
    wanted = ",".join(extras)
    if folder is None and packed is not None:
        return f"pip install '{packed}[{wanted}]'"
    if folder is None:
        return f"pip install '.[{wanted}]' in a clone of poan's repository"
    here = "." if folder == Path.cwd() else str(folder)
    editable = "-e " if _is_editable() else ""
    return f"pip install {editable}'{here}[{wanted}]'"


def missing(module: str, *extras: str) -> str:
    """One line for a module that is not installed."""
    first = f"pip install {FIRST[module]} && " if module in FIRST else ""
    return f"{module} is missing; run: {first}{command(*extras)}"


@contextlib.contextmanager
def needs(module: str | tuple[str, ...], *extras: str) -> Iterator[None]:
    """Turn the absence of ``module`` (or one of several), and only that, into what mends it.

    A broken install, in which another module is missing, still shows its own error.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        named = (module,) if isinstance(module, str) else module
        if error.name not in named:
            raise
        raise PoanError(missing(error.name, *extras)) from None


def checkout() -> Path | None:
    """The source tree that poan runs in or was installed from; None if that is not there."""
    here = _tree_of(Path(__file__).resolve().parent.parent)
    url = urlparse(str(_origin().get("url", "")))
    return here or (_tree_of(Path(unquote(url.path))) if url.scheme == "file" else None)


def wheel() -> Path | None:
    """The wheel that poan was installed from, if it is still there."""
    url = urlparse(str(_origin().get("url", "")))
    path = Path(unquote(url.path))
    return path if url.scheme == "file" and path.suffix == ".whl" and path.is_file() else None


def _tree_of(folder: Path) -> Path | None:
    return folder if (folder / "pyproject.toml").is_file() else None


def _is_editable() -> bool:
    found = _origin().get("dir_info")
    return isinstance(found, dict) and found.get("editable") is True


def _origin() -> dict[str, object]:
    """What pip recorded about where it had poan from (PEP 610); empty for an index."""
    try:
        text = metadata.distribution("poan").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return {}
    found: dict[str, object] = json.loads(text) if text else {}
    return found
