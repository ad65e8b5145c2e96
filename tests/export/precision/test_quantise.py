"""INT8 and FP8: what is quantised, with what scales, at what cost, and what is refused."""

from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from poan_export.gate.real_tiles import Case
from poan_export.precision import quantise as q
from poan_export.precision.quantise import (
    QuantisationRefusedError,
    calibrate,
    psnr_loss,
    quantise,
    quantise_or_refuse,
    residual_convolutions,
)
from poan_runtime.engines.backend import EngineOptions
from poan_runtime.engines.onnxrt import _session
from poan_runtime.engines.tensorrt.build.plan import build_plan
from poan_runtime.errors import PoanError
from tests.tiny.graphs import TILE, answer, order_for, residual_graph

BODY = [f"body.{block}.{part}" for block in range(2) for part in ("first", "second")]


def cases(count: int, noise: float = 1e-2, seed: int = 4) -> list[Case]:
    """Tiles whose truth is what the fp32 network answers, give or take noise."""
    random = np.random.default_rng(seed)
    tiles = random.random((count, 1, TILE, TILE), np.float32)
    truth = answer(residual_graph(), tiles)
    truth = (truth + noise * random.normal(size=truth.shape)).astype(np.float32)
    return [Case(name=f"real {i}", lr=tiles[i], hr=truth[i]) for i in range(count)]


def test_the_convolutions_of_residual_blocks_are_found_and_no_others() -> None:
    found = [node.name for node in residual_convolutions(residual_graph().graph)]
    assert found == BODY


def test_a_scaled_residual_branch_is_found_too() -> None:
    model = residual_graph(blocks=1)
    nodes = list(model.graph.node)
    add = next(node for node in nodes if node.op_type == "Add")
    half = numpy_helper.from_array(np.float32(0.5), "half")
    scaled = helper.make_node("Mul", ["half", "body.0.second"], ["scaled"], name="scaled")
    add.input[0] = "scaled"
    nodes.insert(nodes.index(add), scaled)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(half)
    onnx.checker.check_model(model)
    assert [n.name for n in residual_convolutions(model.graph)] == BODY[:2]


def test_a_sum_that_closes_no_skip_is_left_alone() -> None:
    model = residual_graph(blocks=1)
    add = next(node for node in model.graph.node if node.op_type == "Add")
    add.input[1] = "body.0.first"  # not what the first convolution reads
    assert residual_convolutions(model.graph) == []


def test_every_sample_takes_part_in_the_calibration() -> None:
    model = residual_graph()
    tiles = np.random.default_rng(0).random((5, 1, TILE, TILE), np.float32)
    calm = calibrate(model, tiles, "fp8")
    for place in range(5):  # the first, the last, and no batch that is dropped
        bright = tiles.copy()
        bright[place] *= 10
        loud = calibrate(model, bright, "fp8")
        assert all(loud[name] > 2 * calm[name] for name in calm), place


def test_fp8_scales_map_the_largest_magnitude_to_the_largest_code() -> None:
    model = residual_graph()
    tiles = np.random.default_rng(0).random((2, 1, TILE, TILE), np.float32)
    scales = calibrate(model, tiles, "fp8")
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.insert(0, onnx.ValueInfoProto(name="head"))
    largest = float(np.abs(answer(watched, tiles)).max())
    assert scales["head"] == pytest.approx(largest / 448)


def test_int8_clips_a_rare_outlier_and_keeps_a_flat_distribution() -> None:
    flat = np.ones(q.BINS)
    rare = np.zeros(q.BINS)
    rare[: q.BINS // 4] = 1e6
    rare[-1] = 1
    assert q._best_clip(flat) > 0.98  # cutting 2 % of the values costs more than it gains
    assert q._best_clip(rare) == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_weights_have_one_scale_per_channel_and_are_near_the_old_ones(kind: q.Kind) -> None:
    model = residual_graph()
    done = quantise(model, [0.01] * 4, kind)
    old = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    new = {t.name: numpy_helper.to_array(t) for t in done.graph.initializer}
    for name in BODY:
        weight = old[f"{name}.weight"]
        stored = new[f"{name}.weight.{kind}"].astype(np.float64)
        scale = new[f"{name}.weight.scale"]
        assert scale.shape == (len(weight),)
        assert np.abs(stored).max(axis=(1, 2, 3)) == pytest.approx(q.LARGEST[kind])
        error = np.abs(stored * scale[:, None, None, None] - weight)
        # int8 rounds to half a step; fp8 has 3 bits behind the point: 1/16 of the value
        bound = scale / 2 if kind == "int8" else np.abs(weight).max(axis=(1, 2, 3)) / 16
        assert (error.max(axis=(1, 2, 3)) <= 1.001 * bound).all()
    assert "head.weight" in new
    assert "tail.weight" in new


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_an_fp16_graph_gets_fp16_scales(kind: q.Kind) -> None:
    done = quantise(residual_graph(np.float16), [0.01] * 4, kind)
    onnx.checker.check_model(done, full_check=True)
    kinds = {t.name: t.data_type for t in done.graph.initializer if t.name.endswith(".scale")}
    assert set(kinds.values()) == {onnx.TensorProto.FLOAT16}
    assert len(kinds) == 8


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_graph_that_loses_little_psnr_is_kept_and_runs_on_a_cpu(kind: q.Kind) -> None:
    twins, loss = quantise_or_refuse({"fp32": residual_graph()}, cases(6, noise=1.0), kind)
    assert loss.tiles == 3
    assert loss.mean_db < 0.05
    tiles = np.random.default_rng(9).random((2, 1, TILE, TILE), np.float32)
    full, eight = answer(residual_graph(), tiles), as_the_runtime(twins["fp32"], kind, tiles)
    assert not np.array_equal(full, eight)
    # int8 rounds to 1/254 of the largest magnitude, fp8 each value to 1/16 of itself; a few layers
    bound = {"int8": 0.01, "fp8": 0.03}[kind]
    assert np.abs(full - eight).max() < bound * np.abs(full).max()


def as_the_runtime(
    model: onnx.ModelProto, kind: q.Kind, tiles: NDArray[np.float32]
) -> NDArray[np.float32]:
    """What the runtime's own session answers."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        file = SimpleNamespace(precision=kind)
        found: Any = _session(
            SimpleNamespace(path=path, file=file, manifest=None),  # type: ignore[arg-type]
            EngineOptions(threads=1),
            ["CPUExecutionProvider"],
        ).run(None, {"lr": tiles})[0]
    return np.asarray(found)


def rounded(x: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    """x through Q and DQ in fp8, by another implementation."""
    return (x / np.float32(scale)).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale


def test_onnxruntime_rounds_fp8_as_ml_dtypes_does() -> None:
    """Conv(Q(ReLU(Conv(Q(x))))) by hand. With all of ONNX Runtime's optimisations on, the ReLU is
    lost; then this differs by a third of the answer."""
    model = residual_graph(blocks=1)
    x = np.random.default_rng(1).random((1, 1, TILE, TILE), np.float32)
    scales = [0.01, 0.02]
    done = quantise(model, scales, "fp8")
    found = as_the_runtime(done, "fp8", x)
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    new = {t.name: numpy_helper.to_array(t) for t in done.graph.initializer}

    def convolve(y: NDArray[np.float32], name: str, weight: NDArray[np.float32]) -> Any:
        return torch.nn.functional.conv2d(
            torch.from_numpy(np.ascontiguousarray(y)),
            torch.from_numpy(weight.copy()),
            torch.from_numpy(weights[f"{name}.bias"].copy()),
            padding=1,
        ).numpy()

    def eight(name: str) -> NDArray[np.float32]:
        stored = new[f"{name}.weight.fp8"].astype(np.float32)
        return stored * new[f"{name}.weight.scale"][:, None, None, None]

    head = convolve(x, "head", weights["head.weight"])
    first = convolve(rounded(head, scales[0]), BODY[0], eight(BODY[0]))
    second = convolve(rounded(np.maximum(first, 0), scales[1]), BODY[1], eight(BODY[1]))
    tail = convolve(second + head, "tail", weights["tail.weight"])
    expected = torch.nn.functional.pixel_shuffle(torch.from_numpy(tail), 2).numpy()
    # one value of many may round the other way, by a sixteenth of itself
    assert np.abs(found - expected).max() < 2e-2 * np.abs(expected).max()
    assert np.median(np.abs(found - expected)) < 1e-6


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_graph_that_loses_too_much_psnr_is_refused_with_the_loss(kind: q.Kind) -> None:
    with pytest.raises(QuantisationRefusedError) as refusal:
        quantise_or_refuse({"fp32": residual_graph()}, cases(4, noise=1e-4), kind)
    message = str(refusal.value)
    assert message.startswith(f"--{kind}: refused: it loses ")
    lost = float(message.split("loses ")[1].split(" dB")[0])
    assert lost > 0.05
    assert "the most is 0.05 dB" in message


def test_the_loss_is_the_change_of_psnr() -> None:
    model = residual_graph()
    shifted = residual_graph()
    bias = next(t for t in shifted.graph.initializer if t.name == "tail.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.1), bias.name))
    case = cases(1, noise=0.0)[0]
    assert case.hr is not None
    off = Case(name="off", lr=case.lr, hr=case.hr - np.float32(0.1))
    # errors of 0.1 and of 0.2: twice the error is 20 log10 2
    loss = psnr_loss(model, shifted, [off])
    assert loss.mean_db == pytest.approx(20 * np.log10(2), abs=1e-3)  # float32 sums


def test_a_network_without_residual_blocks_or_tiles_is_refused() -> None:
    with pytest.raises(PoanError, match="no residual blocks"):
        quantise_or_refuse({"fp32": residual_graph(blocks=0)}, cases(2), "int8")
    with pytest.raises(PoanError, match="at least 2 real tiles to calibrate, got 1"):
        quantise_or_refuse({"fp32": residual_graph()}, cases(1), "int8")


@pytest.mark.parametrize(("kind", "sms"), [("int8", ("86",)), ("fp8", ("89", "120"))])
def test_a_real_plan_is_built_from_a_quantised_graph(
    kind: q.Kind, sms: tuple[str, ...], tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
    path = tmp_path / "model.onnx"
    onnx.save(quantise(residual_graph(np.float16), [0.01] * 4, kind), path)
    built = build_plan(order_for(path, precision=kind, sms=sms))
    assert built.report["plan_bytes"] > 0
    if kind == "fp8":
        with pytest.raises(PoanError, match="fp8"):
            build_plan(order_for(path, precision=kind, sms=("86",)))
