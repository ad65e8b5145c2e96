"""Engines on a real GPU; `benchmarks/gpu_check.sh` runs these. Their twins are in test_lanes.py.

None of this was run where it was written: there was no GPU.
"""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from poan_runtime.commands import bench as bench_cli
from poan_runtime.commands import run as cli
from poan_runtime.engines.backend import EngineOptions, open_backend
from poan_runtime.engines.tensorrt.build.judge import gate_plans
from poan_runtime.engines.tensorrt.build.plan import SMS, build_plan, compute_capability
from poan_runtime.engines.tensorrt.check import check_header, read_plan
from poan_runtime.engines.tensorrt.library import MODULES, load_library
from poan_runtime.models.find import find_model
from tests.tiny.graphs import BATCH, TILE, answer, order_for, residual_graph

pytestmark = pytest.mark.gpu
HALF = 5e-3
"""fp16 keeps 11 bits: a few roundings of features of order 1, as a share of the largest answer."""
PLAN = 2
Edit = Callable[[Callable[[dict[str, Any]], None]], None]


@pytest.fixture(params=sorted(MODULES))
def flavour(request: pytest.FixtureRequest, gpu: str) -> str:
    """Each library that is installed and builds for this GPU."""
    name: str = request.param
    pytest.importorskip(MODULES[name], reason=f"needs {name}")
    if name == "tensorrt-rtx" and gpu not in map(compute_capability, SMS):
        pytest.skip(f"tensorrt-rtx has no target for compute capability {gpu}")
    return name


@pytest.fixture
def plan(flavour: str, gpu: str, folder: Path, edit_manifest: Edit) -> Path:
    """The export of conftest.py with a plan for this GPU in place of its own."""
    sms = (gpu.replace(".", ""),) if flavour == "tensorrt-rtx" else ()
    built = build_plan(order_for(folder / "model.fp16.onnx", flavour=flavour, sms=sms))
    edit_manifest(lambda m: m["files"].__setitem__(PLAN, built.manifest_entry().json()))
    return folder / "engine.plan"


@pytest.fixture
def engine(plan: Path) -> Iterator[Any]:
    opened = open_backend(find_model(plan), EngineOptions(device="cuda"))
    yield opened.backend
    opened.backend.close()  # type: ignore[attr-defined]


def tiles(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((count, 1, TILE, TILE), np.float32)


def near(found: NDArray[np.float32], batch: NDArray[np.float32]) -> bool:
    expected = answer(residual_graph(), batch)
    return bool(np.abs(found - expected).max() <= HALF * np.abs(expected).max())


@pytest.mark.parametrize("count", [1, 2, BATCH.max, 3 * BATCH.max + 1])
def test_an_engine_answers_as_the_cpu_does_in_any_batch(count: int, engine: Any) -> None:
    for seed in range(3):  # the second and third run from the captured graph
        assert near(engine.run(tiles(count, seed)), tiles(count, seed))


def test_changing_the_batch_changes_the_graph_and_not_the_answer(engine: Any) -> None:
    for count in (2, 2, 4, 4, 1, 2):
        assert near(engine.run(tiles(count, count)), tiles(count, count))


def test_two_batches_under_way_keep_their_answers(engine: Any) -> None:
    first, second = tiles(2, 1), tiles(3, 2)
    waits = [engine.start(first), engine.start(second)]
    assert near(waits[0](), first)
    assert near(waits[1](), second)


def test_several_threads_have_contexts_of_their_own(engine: Any) -> None:
    good: dict[int, bool] = {}

    def work(seed: int) -> None:
        good[seed] = all(near(engine.run(tiles(4, seed)), tiles(4, seed)) for _ in range(10))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert good == dict.fromkeys(range(3), True)


def test_stages_are_timed_by_the_device(engine: Any) -> None:
    found, times = engine.timed(tiles(2))
    assert near(found, tiles(2))
    assert min(times.enqueue_ms, times.h2d_ms, times.compute_ms, times.d2h_ms) > 0


def test_closing_gives_the_memory_back(plan: Path) -> None:
    from poan_runtime.engines.tensorrt import cuda

    def once() -> int:
        opened = open_backend(find_model(plan), EngineOptions(device="cuda"))
        opened.backend.run(tiles(2))
        opened.backend.close()  # type: ignore[attr-defined]
        del opened
        return cuda.memory_in_use()

    first = once()  # the context and the library's modules stay
    assert [once() - first for _ in range(3)] == pytest.approx([0, 0, 0], abs=8 * 2**20)


def test_the_library_calls_the_plan_valid_here(plan: Path) -> None:
    model = find_model(plan)
    assert model.file.engine is not None
    assert (
        check_header(model, read_plan(model), load_library(model.file.engine.flavour), gpu=True)
        == ()
    )


def test_compiled_kernels_are_kept_in_the_users_cache(
    plan: Path, flavour: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if flavour != "tensorrt-rtx":
        pytest.skip("tensorrt compiles when it builds")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for _ in range(2):
        opened = open_backend(find_model(plan), EngineOptions(device="cuda"))
        assert near(opened.backend.run(tiles(2)), tiles(2))
        opened.backend.close()  # type: ignore[attr-defined]
        (kept,) = (tmp_path / "cache" / "poan").glob("*.kernels")
        assert kept.stat().st_size > 0


def test_verify_writes_the_verdict_and_the_run_says_nothing_more(
    plan: Path, scan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([str(plan), str(scan)]) == 0
    assert "parity pending" in capsys.readouterr().err
    assert cli.main(["--verify", str(plan)]) == 0
    manifest = json.loads((plan.parent / "manifest.json").read_text())
    assert manifest["files"][PLAN]["parity"]["verdict"] == "pass"
    assert cli.main([str(plan), str(scan)]) == 0
    assert capsys.readouterr().err == ""


def test_the_exporters_gate_judges_the_engine_and_finds_a_wrong_one(
    plan: Path, edit_manifest: Edit, flavour: str, gpu: str
) -> None:
    assert gate_plans(plan.parent, [plan.name], print_nothing) == []
    onnx.save(residual_graph(np.float16, seed=1), plan.parent / "model.fp16.onnx")
    sms = (gpu.replace(".", ""),) if flavour == "tensorrt-rtx" else ()
    other = build_plan(order_for(plan.parent / "model.fp16.onnx", flavour=flavour, sms=sms))
    edit_manifest(lambda m: m["files"].__setitem__(PLAN, other.manifest_entry().json()))
    assert gate_plans(plan.parent, [plan.name], print_nothing) == ["engine.plan"]


def print_nothing(line: str) -> None:
    """The report of a gate under test."""


def test_a_damaged_plan_is_refused_before_it_is_loaded(
    plan: Path, scan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bytearray(plan.read_bytes())
    data[len(data) // 2] ^= 1
    plan.write_bytes(data)
    assert cli.main([str(plan), str(scan)]) == 2
    assert "expected sha256" in capsys.readouterr().err


def test_bench_has_every_stage_and_device_memory(plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    options = ["--device", "cuda", "--iterations", "10", "--json", str(out)]
    assert bench_cli.main([str(plan), *options]) == 0
    document = json.loads(out.read_text())
    (model,) = document["models"]
    assert set(model["latency_ms"]) == {"total", "enqueue", "h2d", "compute", "d2h"}
    assert model["cold_start"]["warm_cache"]["device_bytes"] > 0
    assert document["before"]["gpus"]


def test_an_engine_works_in_the_context_that_pycuda_made(plan: Path, gpu: str) -> None:
    driver = pytest.importorskip("pycuda.driver", reason="needs pycuda")
    driver.init()
    context = driver.Device(0).make_context()
    try:
        opened = open_backend(find_model(plan), EngineOptions(device="cuda"))
        memory = driver.to_device(np.arange(4, dtype=np.float32))
        assert near(opened.backend.run(tiles(2)), tiles(2))
        found = driver.from_device(memory, (4,), np.float32)  # the host's context is intact
        assert found.tolist() == [0, 1, 2, 3]
        opened.backend.close()  # type: ignore[attr-defined]
    finally:
        context.pop()


@pytest.mark.parametrize(
    ("backend", "provider"),
    [
        ("onnxruntime", "CUDAExecutionProvider"),
        ("onnxruntime-tensorrt", "TensorrtExecutionProvider"),
    ],
)
def test_onnxruntimes_providers_answer_as_the_cpu_does(
    backend: str, provider: str, folder: Path, gpu: str
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if provider not in onnxruntime.get_available_providers():
        pytest.skip(f"this onnxruntime has no {provider}")
    options = EngineOptions(backend=backend, device="cuda")
    opened = open_backend(find_model(folder / "model.onnx"), options)
    assert opened.device.startswith("cuda:0 (")
    assert near(opened.backend.run(tiles(3)), tiles(3))
