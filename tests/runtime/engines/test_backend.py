"""Which engine runs a model, and what it says when it cannot."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from poan_runtime.engines import backend, nvidia
from poan_runtime.engines.backend import BACKENDS, EngineOptions, extra_for, open_backend
from poan_runtime.errors import PoanError
from poan_runtime.models.find import find_model
from tests.runtime.engines.conformance import check_backend


def hide(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    """Let these modules look uninstalled."""
    real = backend.importlib.util.find_spec
    monkeypatch.setattr(
        backend.importlib.util,
        "find_spec",
        lambda name: None if name in missing else real(name),
    )


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_backend_repeats_voxels_in_any_batch(name: str, nearest_x2: Path) -> None:
    pytest.importorskip(name)
    opened = open_backend(find_model(nearest_x2), EngineOptions(backend=name, threads=1))
    assert (opened.name, opened.device) == (name, "cpu")
    for count in (1, 5, 2):
        batch = np.random.default_rng(count).normal(size=(count, 1, 16, 16)).astype(np.float32)
        out = opened.backend.run(batch)
        assert out.dtype == np.float32
        assert np.array_equal(out, batch.repeat(2, 2).repeat(2, 3))


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_an_engine_keeps_the_contract(name: str, nearest_x2: Path) -> None:
    pytest.importorskip(name)
    # One thread: an answer that is not a new array is overwritten by the batch's next tile.
    opened = open_backend(find_model(nearest_x2), EngineOptions(backend=name, threads=1))
    check_backend(opened.backend, tile=16, scale=2)


def test_auto_takes_openvino_where_that_was_measured_to_be_faster(make_model: Any) -> None:
    pytest.importorskip("openvino")
    with_attention = [(form, "openvino") for form in ("box", "flat", "unfold")]
    for form, name in (*with_attention, ("none", "onnxruntime")):
        model = find_model(make_model(attention={"form": form}))
        opened = open_backend(model, EngineOptions(device="cpu"))
        assert opened.name == name
        assert opened.reason


def test_auto_takes_what_is_installed(make_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "openvino")
    model = find_model(make_model(attention={"form": "box"}))
    opened = open_backend(model, EngineOptions())
    assert opened.name == "onnxruntime"
    assert "only engine installed" in opened.reason
    hide(monkeypatch, "openvino", "onnxruntime")
    with pytest.raises(PoanError, match=r"no inference engine .*pip install .*\[cpu\]'"):
        open_backend(model, EngineOptions())
    for gpus, said in [
        ((), "^the NVIDIA driver shows no GPU here, and no inf"),
        (("a",), "^no inf"),
    ]:
        driver = nvidia.Driver(cuda=13000, gpus=gpus)
        monkeypatch.setattr(nvidia, "find_driver", lambda driver=driver: driver)
        with pytest.raises(PoanError, match=said + r".*run: pip install .*\[gpu\]'$"):
            open_backend(model, EngineOptions(device="cuda:1"))


def test_a_device_that_is_not_there_is_one_line(nearest_x2: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has a CUDA provider")
    model = find_model(nearest_x2)
    for options in (
        EngineOptions(backend="onnxruntime", device="cuda"),
        EngineOptions(backend="onnxruntime-tensorrt"),
        EngineOptions(device="cuda"),
    ):
        with pytest.raises(
            PoanError,
            match=r"has no .*ExecutionProvider; run: pip uninstall -y",
        ):
            open_backend(model, options)


def test_a_file_that_no_backend_runs_is_one_line(nearest_x2: Path) -> None:
    model = find_model(nearest_x2)
    plan = dataclasses.replace(model.file, kind="plan")
    model = dataclasses.replace(model, file=plan)
    with pytest.raises(PoanError, match="onnxruntime runs onnx files, this is a plan"):
        open_backend(model, EngineOptions(backend="onnxruntime"))


def test_ports_that_the_graph_lacks_are_one_line(make_model: Any) -> None:
    model = find_model(make_model(inputs={"name": "image"}))
    with pytest.raises(PoanError, match=r"an input named image, got \['lr'\]"):
        open_backend(model, EngineOptions(backend="onnxruntime"))


def test_a_tile_that_is_not_the_graphs_is_one_line(make_model: Any) -> None:
    model = find_model(make_model())
    wrong = dataclasses.replace(model, manifest=dataclasses.replace(model.manifest, tile=24))
    for name in ("onnxruntime", "openvino"):
        pytest.importorskip(name)
        with pytest.raises(PoanError, match=r"expected input shape \(N, 1, 24, 24\)"):
            open_backend(wrong, EngineOptions(backend=name))


@pytest.mark.parametrize(("cuda", "extra"), [(12080, "cu12"), (13000, "cu13")])
def test_a_missing_library_is_told_of_by_the_extra_that_fits_the_driver(
    cuda: int, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = nvidia.Driver(cuda=cuda, gpus=("a card",))
    monkeypatch.setattr(nvidia, "find_driver", lambda: driver)
    for flavour in ("tensorrt", "tensorrt-rtx"):
        assert extra_for(BACKENDS[flavour], "cuda") == f"{flavour}-{extra}"
