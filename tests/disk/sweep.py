"""Runs a command again and again in one process, each time with the disk failing one call later.

    LD_PRELOAD=shim.so python -m tests.disk.sweep '{"module": ..., "arguments": [...], ...}'

Prints a JSON list: for each failing call the status, the lines on stderr, and the files that have
their final name, by content. The last entry is the run that met no failure.
"""

import contextlib
import ctypes
import hashlib
import importlib
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any


def run(asked: dict[str, Any], at: int) -> dict[str, Any]:
    """Once, in a fresh folder; below ``under`` the calls from number ``at`` on fail."""
    shim = ctypes.CDLL(None)
    work = Path(asked["work"])
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(asked["before"], work)
    main = importlib.import_module(asked["module"]).main
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        shim.disk_arm(asked["under"].encode(), asked["op"], at, asked["errno"])
        try:
            status = main(asked["arguments"])
        except SystemExit as end:
            status = end.code
        except BaseException as error:
            status = f"{type(error).__name__}: {error}"
        finally:
            calls = shim.disk_disarm()
    files = {
        str(path.relative_to(work)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(work.rglob("*"))
        if path.is_file()
    }
    return {"status": status, "said": said.getvalue(), "files": files, "calls": calls}


def main() -> None:
    asked = json.loads(sys.argv[1])
    for _ in range(2):  # what is loaded or cached once is not there the second time
        whole = run(asked, 0)
    step = max(1, whole["calls"] // asked["most"])
    runs = [run(asked, at) for at in range(1, whole["calls"] + 1, step)]
    json.dump([*runs, whole], sys.stdout)


if __name__ == "__main__":
    main()
