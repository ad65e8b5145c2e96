"""The node's folder: who may use it, what lies in it, what is laid by, what is swept.

``queue.db``, ``in`` (received images), ``out`` (derived ones, a folder for each attempt), ``dead``
(links to the images of a series that was given up, with ``why.json``).
"""

import contextlib
import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from poan_runtime.errors import PoanError
from poan_runtime.files import CAN_HOLD, hold
from poan_runtime.services.dicom_node.log import short


class Storage:
    """Paths below the node's folder, which is made."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.received, self.derived, self.dead = root / "in", root / "out", root / "dead"
        self.database = root / "queue.db"
        try:
            root.mkdir(parents=True, exist_ok=True)
            root.chmod(0o700)
            for folder in (self.received, self.derived, self.dead):
                folder.mkdir(exist_ok=True)
        except OSError as error:
            raise PoanError(f"{root}: cannot be used: {error.strerror}") from None

    def lock(self) -> int:
        """Be the only node here until the process ends; PoanError if there is one already."""
        handle = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        if CAN_HOLD and not hold(handle):
            os.close(handle)
            raise PoanError(f"{self.root}: another poan-node works here")
        return handle

    def new_folder(self, series_uid: str) -> Path:
        """A name that no other attempt has."""
        return self.derived / f"{short(series_uid)}-{secrets.token_hex(4)}"

    def is_laid_by(self, series_uid: str) -> bool:
        """Whether the series is shown as given up."""
        return (self.dead / short(series_uid) / "why.json").exists()

    def lay_by(self, series_uid: str, files: list[str], why: dict[str, Any]) -> None:
        """Show a series that was given up: links to its images, and why."""
        folder = self.dead / short(series_uid)
        folder.mkdir(exist_ok=True)
        for name in files:
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                os.link(self.root / name, folder / Path(name).name)
        (folder / "why.json").write_text(json.dumps(why, indent=1) + "\n", "utf-8")

    def take_up(self, series_uid: str) -> None:
        """The series is no longer given up."""
        shutil.rmtree(self.dead / short(series_uid), ignore_errors=True)

    def remove(self, files: list[str]) -> None:
        """Remove files below the root, and folders that are empty then."""
        for name in files:
            path = self.root / name
            path.unlink(missing_ok=True)
            while path.parent not in (self.received, self.derived, self.root):
                path = path.parent
                try:
                    path.rmdir()
                except OSError:
                    break

    def sweep(self, known: set[str]) -> int:
        """Remove what a killed process left that nobody names; how many entries."""
        keep = {self.root / name for name in known}
        folders = {path.relative_to(self.derived).parts[0] for path in keep if self._ours(path)}
        left = [path for path in self.derived.iterdir() if path.name not in folders]
        for folder in left:
            shutil.rmtree(folder, ignore_errors=True)
        stray = [path for path in self.received.iterdir() if path not in keep]
        for path in stray:
            path.unlink(missing_ok=True)
        return len(left) + len(stray)

    def _ours(self, path: Path) -> bool:
        return path.is_relative_to(self.derived) and path != self.derived
