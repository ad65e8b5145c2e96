"""Files that appear whole or not at all, scratch files, hashes, the cache folder."""

import contextlib
import functools
import glob
import hashlib
import importlib.util
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from poan_runtime.errors import PoanError

HASHED_AT_ONCE = 1 << 20
MOST_STARTS = 3
CAN_HOLD = importlib.util.find_spec("fcntl") is not None
"""Whether `hold` can tell who else is at work: not on Windows."""


class WholeFile:
    """A file that gets its name only once it is complete.

    A context manager, or `open`, `write` and then `complete` or `abandon`. Bytes go to
    ``.NAME.RANDOM.poan-partial`` beside the target, which is flushed to disk and renamed at the
    end, or removed after an error. A killed process leaves that file, never one with the
    target's name; the next one to write the target removes it. Of two that write the same target
    at once, each writes a file of its own, and the last to be done has the name.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        name = f".{target.name}.{secrets.token_hex(4)}.poan-partial"
        self._partial = target.with_name(name)
        self._file: BinaryIO | None = None

    def open(self) -> None:
        """Create the partial file."""
        if self.target.is_dir():
            raise PoanError(f"{self.target}: expected a file name, got a folder")
        with self._refusals():
            remove_abandoned(self.target.parent, f".{glob.escape(self.target.name)}.*.poan-partial")
            self._file = self._partial.open("xb")
            hold(self._file)

    def write(self, data: bytes | memoryview) -> int:
        """Append; what the operating system refuses (a full disk) is a PoanError."""
        assert self._file is not None, "a file is opened before it is written"
        with self._refusals():
            return self._file.write(data)

    def flush(self) -> None:
        """Nothing: `complete` does it. Libraries that take a file for writing call it."""

    def complete(self) -> None:
        """Give the file its name."""
        assert self._file is not None, "a file is opened before it is completed"
        try:
            with self._refusals():
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                self._partial.replace(self.target)
        finally:
            self.abandon()
        try:
            sync_folder(self.target.parent)
        except OSError as error:
            raise PoanError(
                f"{self.target}: is whole, but its name may not outlast a power cut: "
                f"{error.strerror}"
            ) from None

    def abandon(self) -> None:
        """Remove what has no name yet; a second call does nothing."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
            self._partial.unlink(missing_ok=True)

    def __enter__(self) -> "WholeFile":
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.complete()
        else:
            self.abandon()

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise PoanError(f"{self.target}: cannot be written: {error.strerror}") from None


def hold(handle: int | BinaryIO) -> bool:
    """Mark an open file or folder as in use while its handle is open; whether that was possible."""
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):  # Windows; in use; a file system without locks
        return False
    return True


def remove_abandoned(folder: Path, pattern: str) -> None:
    """Remove files and folders that match and that no process holds: what killed ones left."""
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDONLY)
            try:
                if not hold(handle):
                    continue
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()
            finally:
                os.close(handle)


@contextlib.contextmanager
def working_folder(parent: Path, prefix: str, suffix: str) -> Iterator[Path]:
    """A temporary folder PREFIX RANDOM SUFFIX in ``parent`` that is gone after the block.

    Those that killed processes left under such a name are removed first.
    """
    parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(parent, f"{glob.escape(prefix)}*{glob.escape(suffix)}")
    with contextlib.ExitStack() as ends:
        for _ in range(MOST_STARTS):
            work = Path(tempfile.mkdtemp(dir=parent, prefix=prefix, suffix=suffix))
            ends.callback(shutil.rmtree, work, ignore_errors=True)
            if not CAN_HOLD:
                break
            with contextlib.suppress(FileNotFoundError):  # taken for abandoned before it was held
                handle = os.open(work, os.O_RDONLY)
                ends.callback(os.close, handle)
                if hold(handle) and work.is_dir():
                    break
        yield work


def sync_folder(folder: Path) -> None:
    """Wait until the names in ``folder`` are on the disk, where a folder can be waited for.

    Windows opens no folder as a file; it writes names down by itself.
    """
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def temporary_file(scratch: Path | None, size: int = 0) -> BinaryIO:
    """A nameless file in ``scratch`` that vanishes when it is closed or the process ends.

    None stands for the system's temporary folder. ``size`` bytes of the disk are reserved at
    once, so that a full disk is an error here, and no end of the process where it is mapped.
    """
    with writing(scratch):
        file = tempfile.TemporaryFile(dir=scratch, prefix="poan-")  # noqa: SIM115 (the caller's)
        try:
            if size and sys.platform == "linux":
                os.posix_fallocate(file.fileno(), 0, size)
            file.truncate(size)
        except BaseException:
            file.close()
            raise
        return file


@contextlib.contextmanager
def writing(folder: Path | None) -> Iterator[None]:
    """Turn what the operating system refuses in the temporary folder into one line."""
    try:
        yield
    except OSError as error:
        where = folder or Path(tempfile.gettempdir())
        raise PoanError(f"{where}: cannot write a temporary file: {error.strerror}") from None


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses about ``path`` into one line."""
    try:
        yield
    except OSError as error:
        raise PoanError(f"{path}: cannot be read: {error.strerror}") from None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in lower-case hexadecimal."""
    with reading(path), path.open("rb") as file:
        return file_sha256(file).hex()


def file_sha256(file: BinaryIO) -> bytes:
    """SHA-256 of what is left of an open file."""
    digest = hashlib.sha256()
    while chunk := file.read(HASHED_AT_ONCE):
        digest.update(chunk)
    return digest.digest()


def cache_place() -> Path:
    """Where `cache_folder` lies, without making it. Raises RuntimeError where there is no home."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "poan"


def cache_folder() -> Path:
    """Where compiled kernels and timings are kept between runs; made on first use.

    ``poan`` in the user's cache folder ($XDG_CACHE_HOME, else ~/.cache). It holds code that is
    loaded again, so it is its owner's alone (0700). Where it cannot be made, it is a temporary
    folder that goes with the process: the next start is slower.
    """
    try:
        folder = cache_place()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_mode & 0o077:
            folder.chmod(0o700)
    except (OSError, RuntimeError):  # RuntimeError: nobody's home
        return Path(_scratch().name)
    return folder if os.access(folder, os.W_OK) else Path(_scratch().name)


@functools.cache
def _scratch() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="poan-", ignore_cleanup_errors=True)
