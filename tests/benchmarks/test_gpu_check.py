"""benchmarks/gpu_check.sh: JSON and a status that says whether anything was checked."""

import json
import os
import subprocess
import sys
from pathlib import Path

GPU_TESTS = "tests/runtime/engines/tensorrt/test_gpu.py"


def test_without_a_gpu_all_is_skipped_with_reasons_and_the_status_says_nothing_ran(
    no_gpu: None, repository: Path, tmp_path: Path
) -> None:
    out = tmp_path / "gpu.json"
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(
        [
            str(repository / "benchmarks/gpu_check.sh"),
            str(out),
            "tests/runtime/engines/tensorrt/test_gpu.py",
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stdout + done.stderr
    document = json.loads(out.read_text())
    assert document["counts"]["passed"] == document["counts"]["failed"] == 0
    assert document["counts"]["skipped"] == len(document["tests"]) >= 30
    assert all("GPU" in test["reason"] for test in document["tests"])
    assert document["state"]["gpus"] is None
