"""A network that another thread closes leaves the thread that loaded it able to take a signal."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CLOSED_IN_A_THREAD = """
import gc, os, signal, sys, threading
from poan_runtime import EngineOptions, load_network

network = [load_network(sys.argv[1], EngineOptions(backend="openvino"))]

def close():
    network.pop().close()
    gc.collect()

thread = threading.Thread(target=close)
thread.start()
thread.join()
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_after_another_thread_closed_the_network_is_an_interrupt(nearest_x2: Path) -> None:
    pytest.importorskip("openvino", reason="needs openvino")
    done = subprocess.run(
        [sys.executable, "-c", CLOSED_IN_A_THREAD, str(nearest_x2)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
