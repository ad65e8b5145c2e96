"""poan-bench on a CPU: figures from real runs of tiny networks."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from poan_runtime.bench import cold, measure
from poan_runtime.bench.machine import describe_machine, snapshot
from poan_runtime.bench.measure import Request, bench
from poan_runtime.bench.statistics import FIGURES, ratios, summarise
from poan_runtime.bench.table import lines_of
from poan_runtime.commands import bench as cli
from poan_runtime.engines import backend as engines
from poan_runtime.engines import which_file
from poan_runtime.engines.backend import EngineOptions
from poan_runtime.models.find import find_model
from tests.tiny.graphs import sha256

pytest.importorskip("tensorrt_rtx", reason="the folder under test holds a real plan")


def test_percentiles_are_times_that_were_measured() -> None:
    samples = [float(value) for value in range(1, 101)]
    assert summarise(list(reversed(samples))) == {
        "min": 1,
        "mean": 50.5,
        "p50": 50,
        "p90": 90,
        "p95": 95,
        "p99": 99,
        "max": 100,
    }
    assert set(summarise([7.0]).values()) == {7.0}
    with pytest.raises(ValueError, match="at least one sample"):
        summarise([])


def test_the_median_of_pairs_does_not_change_when_both_runs_slow_down() -> None:
    noise = np.random.default_rng(0).uniform(1, 10, 50)
    found = ratios(list(noise), list(3 * noise))
    assert found["median_of_pairs"] == pytest.approx(3)  # rounding of float64 alone


def run(folder: Path, **changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "models": (str(folder / "model.onnx"), f"{folder / 'model.onnx'}@onnxruntime"),
        "iterations": 6,
        "warmup": 2,
        "cold": False,
        "device": "cpu",
        "threads": 1,
    }
    return bench(Request(**(settings | changes)))


def test_a_cpu_run_has_total_latency_throughput_scan_hashes_and_raw_samples(folder: Path) -> None:
    document = run(folder)
    first, second = document["models"]
    assert first["sha256"] == sha256(folder / "model.onnx")
    assert list(first["latency_ms"]) == ["total"]  # a CPU session does not tell stages apart
    assert tuple(first["latency_ms"]["total"]) == FIGURES
    samples = first["samples_ms"]["total"]
    assert len(samples) == 6
    assert len(first["warm_up_ms"]) == 2
    assert first["latency_ms"]["total"]["max"] == max(samples)
    assert first["tiles_per_second"] == pytest.approx(2 * 6 / (sum(samples) / 1e3))
    assert first["scan_s"]["min"] > 0
    assert document["ratios_to_first"][second["label"]] == ratios(
        samples, second["samples_ms"]["total"]
    )
    json.loads(json.dumps(document, allow_nan=False))


def test_models_take_turns_and_each_round_another_begins(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = []
    real = measure._sample

    def watched(contender: measure.Contender) -> dict[str, float]:
        turns.append("@" in contender.label)
        return real(contender)

    monkeypatch.setattr(measure, "_sample", watched)
    run(folder, iterations=3, warmup=0, scan_iterations=0)
    assert turns == [False, True, True, False, False, True]


def test_a_backend_that_tells_its_stages_apart_has_them_all(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage times themselves need a GPU; here their way into the document."""
    from poan_runtime.engines.cores import TileByTile
    from poan_runtime.engines.tensorrt.backend import StageTimes

    times = StageTimes(enqueue_ms=0.5, h2d_ms=1.0, compute_ms=4.0, d2h_ms=2.0)
    monkeypatch.setattr(
        TileByTile, "timed", lambda self, batch: (self.run(batch), times), raising=False
    )
    (model,) = run(folder, models=(f"{folder / 'model.onnx'}@onnxruntime",))["models"]
    assert list(model["latency_ms"]) == ["total", "enqueue", "h2d", "compute", "d2h"]
    assert model["latency_ms"]["compute"]["p99"] == 4.0
    assert any("D2H" in line for line in lines_of({"models": [model], "ratios_to_first": {}}))


def test_cold_starts_are_measured_in_processes_of_their_own(folder: Path) -> None:
    (model,) = run(folder, models=(str(folder / "model.onnx"),), cold=True)["models"]
    for start in ("cold_cache", "warm_cache"):
        cold = model["cold_start"][start]
        assert min(cold[f"{part}_s"] for part in ("import", "load", "create", "first_batch")) > 0
        # Python, numpy and an inference engine: more than a bare interpreter, less than a torch
        assert 20 * 2**20 < cold["peak_host_bytes"] < 2**30
        assert cold["device_bytes"] is None or cold["device_bytes"] >= 0


def test_a_cold_start_is_split_at_finding_creating_and_the_first_batch(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that each step moves by seconds of its own."""
    clock = [10.0]

    def takes(seconds: float, result: Any) -> Callable[..., Any]:
        def step(*arguments: Any) -> Any:
            clock[0] += seconds
            return result

        return step

    batches = iter((5.0, 7.0))
    backend = SimpleNamespace(run=lambda batch: takes(next(batches), batch)(), close=lambda: None)
    model = find_model(folder / "model.onnx")
    monkeypatch.setattr(cold, "START", 9.0)
    monkeypatch.setattr(cold.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(which_file, "find_runnable", takes(2.0, model))
    monkeypatch.setattr(engines, "open_backend", takes(3.0, SimpleNamespace(backend=backend)))
    found = cold.measure({"model": "any", "options": {}, "batch": 1})
    parts = ("import", "load", "create", "first_batch", "second_batch")
    assert [found[f"{part}_s"] for part in parts] == [1.0, 2.0, 3.0, 5.0, 7.0]
    assert found["total_to_first_answer_s"] == 11.0


def test_a_cold_start_opens_with_the_options_that_were_asked_for() -> None:
    options = EngineOptions(backend="openvino", device="cpu", threads=3, precision="bf16")
    sent = json.loads(json.dumps(measure.asked(options)))
    assert EngineOptions(**sent) == options


def test_peak_memory_of_a_cold_start_does_not_count_its_parents_memory() -> None:
    code = (
        "import subprocess, sys; held = bytearray(300 << 20);"
        "print(subprocess.run([sys.executable, '-c', 'from poan_runtime.bench import cold;"
        "print(cold.peak_memory_bytes())'], capture_output=True, text=True, check=True).stdout)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100 << 20


def test_a_failed_cold_start_is_one_line(folder: Path, tmp_path: Path) -> None:
    order = tmp_path / "order.json"
    order.write_text(json.dumps({"model": "nowhere", "options": {}, "batch": 1}))
    with pytest.raises(measure.PoanError, match=r"^a cold start failed: .*nowhere"):
        measure._cold(order, dict(measure.os.environ))


def test_the_command_writes_json_and_a_plot_and_prints_a_table(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, plot = tmp_path / "bench.json", tmp_path / "bench.png"
    models = [str(folder / "model.onnx"), str(folder / "model.fp16.onnx")]
    options = ["--iterations", "4", "--warmup", "1", "--no-cold", "--device", "cpu"]
    assert cli.main([*models, *options, "--json", str(out), "--plot", str(plot)]) == 0
    printed = capsys.readouterr().out
    assert "tiles/s" in printed
    assert "times as long as" in printed
    assert [model["label"] for model in json.loads(out.read_text())["models"]] == models
    pixels = np.asarray(Image.open(plot).convert("RGB"))
    for colour in ((0x1B, 0x6C, 0xA8), (0xC8, 0x55, 0x3D)):
        drawn = np.argwhere((pixels == colour).all(axis=2))
        assert np.ptp(drawn[:, 0]) > 200  # each curve climbs from 0 to 100 %


def test_a_plan_without_a_gpu_is_benched_as_the_onnx_file_and_says_so(
    folder: Path, no_gpu: None, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--iterations", "1", "--warmup", "0", "--no-cold", "--scan-iterations", "0"]
    assert cli.main([str(folder / "engine.plan"), *options]) == 0
    assert "running model.onnx in its place" in capsys.readouterr().out
    assert cli.main([str(folder / "engine.plan"), *options, "--device", "cuda"]) == 2
    assert "no GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no such file or folder"),
        (["{model}", "--batch", "9"], "--batch: {model} takes 1 to 4, got 9"),
        (["{model}", "{model}"], "expected different models"),
        (["{model}", "--json", "nowhere/x.json"], "nowhere/x.json: there is no folder nowhere"),
    ],
)
def test_what_the_user_can_mend_is_one_line(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(folder / "model.onnx")
    assert cli.main([part.format(model=model) for part in arguments]) == 2
    error = capsys.readouterr().err
    assert message.format(model=model) in error
    assert error.count("\n") == 1


def test_the_machine_is_described(no_gpu: None) -> None:
    described = describe_machine()
    assert described["versions"]["numpy"] == np.__version__
    assert described["cpus"] >= described["cpus_allowed"] >= 1
    assert snapshot()["gpus"] is None
    assert len(snapshot()["load_average"]) == 3


def test_help_imports_no_engine() -> None:
    code = (
        "import sys, contextlib\n"
        "from poan_runtime.commands.bench import main\n"
        "with contextlib.suppress(SystemExit): main(['--help'])\n"
        "heavy = {'onnxruntime', 'openvino', 'numpy', 'torch', 'onnx', 'matplotlib', 'cuda'}\n"
        "print('heavy:', *heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "heavy:"
