"""A cold start, in a process of its own: ``python -m poan_runtime.bench.cold ORDER.json``.

What a fresh process pays before it answers: the imports, finding and hashing the model, creating
the session or deserialising the plan, the first batch (in which tensorrt-rtx compiles) and the
second, which is warm. Prints one JSON object. File caches of the system are left as they are.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from poan_runtime.report.memory import peak_memory_bytes

START = time.perf_counter()


def measure(order: dict[str, Any]) -> dict[str, Any]:
    """Seconds of each part, and peak memory in bytes."""
    import numpy as np

    from poan_runtime.engines.backend import EngineOptions, open_backend
    from poan_runtime.engines.which_file import find_runnable

    imported = time.perf_counter()
    options = EngineOptions(**order["options"])
    model = find_runnable(order["model"], options)
    found = time.perf_counter()
    before = _device_bytes()
    opened = open_backend(model, options)
    created = time.perf_counter()
    tile = model.manifest.tile
    batch = np.random.default_rng(0).random((order["batch"], 1, tile, tile), np.float32)
    opened.backend.run(batch)
    first = time.perf_counter()
    opened.backend.run(batch)
    second = time.perf_counter()
    device = None if before is None else (_device_bytes() or before) - before
    opened.backend.close()
    return {
        "import_s": imported - START,
        "load_s": found - imported,
        "create_s": created - found,
        "first_batch_s": first - created,
        "second_batch_s": second - first,
        "total_to_first_answer_s": first - START,
        "peak_host_bytes": peak_memory_bytes(),
        "device_bytes": device,
    }


def _device_bytes() -> int | None:
    """Device memory in use, where there is a GPU and cuda-python."""
    try:
        from poan_runtime.engines.tensorrt import cuda
    except ModuleNotFoundError:
        return None
    try:
        cuda.find_gpu()
    except cuda.NoGpuError:
        return None
    return cuda.memory_in_use()


def main() -> int:
    sys.stdout.write(json.dumps(measure(json.loads(Path(sys.argv[1]).read_text("utf-8")))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
