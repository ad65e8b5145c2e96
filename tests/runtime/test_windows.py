"""What Windows lacks, taken away here: most RTX cards are in such machines.

No Windows was at hand. These tests take away what only POSIX has; that the rest works there was
not seen.
"""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poan_runtime import files
from poan_runtime.bench import machine
from poan_runtime.engines import nvidia
from poan_runtime.report import memory

ONLY_POSIX = ("resource", "fcntl", "pwd", "grp", "termios")


def test_a_scan_runs_without_the_modules_that_windows_lacks(
    nearest_x2: Path, make_scan: Any, tmp_path: Path
) -> None:
    scan = make_scan("ein Scan äß.nii.gz")  # a path with a blank, and letters beyond ASCII
    out = tmp_path / "größer.nii.gz"
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({ONLY_POSIX!r}))\n"  # None: an import fails
        "from poan_runtime.commands import run\n"
        "sys.exit(run.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-X", "utf8=0", "-c", code, str(nearest_x2), str(scan)]
    done = subprocess.run(
        [*command, "-o", str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert out.is_file()


def test_no_module_of_the_runtime_imports_what_windows_lacks_where_it_is_loaded(
    repository: Path,
) -> None:
    """Within a function, behind a question for the platform or an ImportError, it may."""
    found = []
    for path in sorted((repository / "poan_runtime").rglob("*.py")):
        for node in ast.parse(path.read_text("utf-8")).body:
            names = [alias.name for alias in getattr(node, "names", [])]
            if isinstance(node, ast.Import | ast.ImportFrom):
                names.append(getattr(node, "module", None) or "")
                found += [f"{path.name}: {name}" for name in names if name in ONLY_POSIX]
    assert found == []


def test_text_is_read_and_written_in_one_encoding_whatever_the_systems_is(
    repository: Path,
) -> None:
    found = []
    for path in sorted((repository / "poan_runtime").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            position = {"read_text": 0, "write_text": 1}.get(node.func.attr)
            given = {keyword.arg for keyword in node.keywords}
            if position is None or "encoding" in given or len(node.args) > position:
                continue
            found.append(f"{path.name}:{node.lineno}")
    assert found == []


def test_a_folder_is_not_opened_as_a_file_on_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.sys, "platform", "win32")
    monkeypatch.setattr(files.os, "open", lambda *_: pytest.fail("Windows refuses that"))
    with files.WholeFile(tmp_path / "whole") as file:
        file.write(b"all of it")
    assert (tmp_path / "whole").read_bytes() == b"all of it"


def test_peak_memory_is_asked_of_windows_own_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(process: Any, counters: Any, size: int) -> int:
        assert size == memory.ctypes.sizeof(memory._Counters)
        counters._obj.peak_working_set = 12345678
        return 1

    kernel = SimpleNamespace(
        GetCurrentProcess=type("Call", (), {"__call__": lambda self: 7})(),
        K32GetProcessMemoryInfo=fill,
    )
    monkeypatch.setattr(memory.ctypes, "WinDLL", lambda name: kernel, raising=False)
    monkeypatch.setattr(memory.sys, "platform", "win32")
    monkeypatch.setattr(memory, "Path", lambda _: SimpleNamespace(read_text=_missing))
    assert memory.peak_memory_bytes() == 12345678


def _missing(encoding: str) -> str:
    raise FileNotFoundError("/proc/self/status")


def test_a_machine_without_a_load_average_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "getloadavg")
    assert machine._load_average() is None


def test_the_drivers_library_has_its_windows_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert importlib.reload(nvidia).LIBRARY == "nvcuda.dll"
    monkeypatch.undo()
    assert importlib.reload(nvidia).LIBRARY == "libcuda.so.1"


def test_a_machine_that_tells_no_affinity_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(machine, "sys", SimpleNamespace(platform="win32"))
    assert machine.describe_machine()["cpus_allowed"] is None


def test_room_on_the_disk_is_taken_where_none_can_be_reserved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    monkeypatch.setattr(files, "sys", SimpleNamespace(platform="win32"))
    with files.temporary_file(tmp_path, 64) as file:
        assert file.seek(0, os.SEEK_END) == 64
