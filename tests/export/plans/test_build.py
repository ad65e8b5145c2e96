"""Real plans of tiny graphs by the real tensorrt-rtx, with no GPU; and builders that die."""

import dataclasses
import re
import signal
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from poan_runtime.engines.tensorrt.build.log import read_build_log
from poan_runtime.engines.tensorrt.build.plan import (
    BuiltPlan,
    build_plan,
    full_batches,
    run_builder,
)
from poan_runtime.engines.tensorrt.library import load_library
from poan_runtime.errors import PoanError
from poan_runtime.files import sha256_of
from poan_runtime.models.manifest import PENDING, BatchRange
from tests.tiny.graphs import BATCH, CHANNELS, TILE, order_for

pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
POINTS, WIDTH = 4096, 32
TWICE = BatchRange(min=1, opt=2, max=2 * BATCH.max)


def attention_graph(path: Path) -> None:
    """softmax(Q K^T) V in fp16, one head, as an attention over a 64x64 tile has it."""
    shape = ["n", 1, POINTS, WIDTH]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT16, shape) for n in "qkvo"]
    nodes = [
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2], name="turn"),
        helper.make_node("MatMul", ["q", "kt"], ["s"], name="score"),
        helper.make_node("Softmax", ["s"], ["p"], axis=-1, name="soft"),
        helper.make_node("MatMul", ["p", "v"], ["o"], name="mix"),
    ]
    save(nodes, ports[:3], ports[3:], path)


def save(nodes: list, inputs: list, outputs: list, path: Path, opset: int = 20) -> None:  # type: ignore[type-arg]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 10
    onnx.save(model, path)


def test_a_plan_is_built_without_a_gpu_and_its_entry_says_how(built: BuiltPlan) -> None:
    entry = built.manifest_entry()
    engine = entry.engine
    assert engine is not None
    assert entry.sha256 == sha256_of(built.order.plan)
    assert engine.source_onnx_sha256 == sha256_of(built.order.onnx)
    assert engine.version == load_library("tensorrt-rtx").version
    assert engine.compute_capabilities == ("8.6", "8.9")
    assert engine.builder_flags == ()  # TF32 is off, so that fp32 islands are fp32
    assert engine.profile == BatchRange(min=1, opt=2, max=4)
    assert entry.parity == PENDING
    assert built.order.plan.stat().st_size == engine.report["plan_bytes"]
    assert not built.order.plan.with_name("engine.plan.log").exists()


def test_the_report_holds_the_builders_own_figures(built: BuiltPlan) -> None:
    report = built.report
    assert report["layer_kinds"]["correlation"] == 6  # head, two blocks of two, tail
    # fp16 weights of four CHANNELS x CHANNELS 3x3 convolutions at least
    assert report["weights_bytes"] >= 2 * 4 * 9 * CHANNELS**2
    assert report["activation_bytes"] >= 2 * 4 * CHANNELS * TILE**2
    assert report["attention"] == {}
    assert 0 < report["engine_generation_s"] <= report["build_s"]


def test_the_plans_header_is_one_that_the_library_knows(built: BuiltPlan) -> None:
    library = load_library("tensorrt-rtx")
    runtime = library.api.Runtime(library.logger)
    header = built.order.plan.read_bytes()[: runtime.engine_header_size]
    malformed = int(library.api.EngineInvalidityDiagnostics.MALFORMED_ENGINE)
    _, bits = runtime.get_engine_validity(header)
    assert bits & malformed == 0
    _, bits = runtime.get_engine_validity(b"\0" + header[1:])
    assert bits & malformed


def test_attention_that_fuses_is_reported_by_its_nodes(tmp_path: Path) -> None:
    attention_graph(tmp_path / "attention.onnx")
    built = build_plan(order_for(tmp_path / "attention.onnx", sms=("86",)))
    assert built.report["attention"] == {"mix": True, "soft": True, "score": True}
    assert len(built.report["fused_attention"]) == 1
    # unfused, the scores alone would take 2 * 4 * 4096^2 bytes
    assert built.report["activation_bytes"] < 2 * BATCH.max * POINTS**2
    larger = order_for(tmp_path / "attention.onnx", sms=("86",), batch=TWICE)
    ratio = build_plan(larger).report["activation_bytes"] / built.report["activation_bytes"]
    assert ratio == pytest.approx(2, abs=0.1)  # memory follows the largest batch


def test_a_log_without_figures_gives_none() -> None:
    report = read_build_log("[INFO] nothing to see\n")
    assert report["layers"] == 0
    assert report["activation_bytes"] is report["weights_bytes"] is None


def test_what_the_library_rejects_is_one_line_with_its_reason(tmp_path: Path) -> None:
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1, side, side])
        for name, side in (("lr", 8), ("sr", 4))
    ]
    scales = helper.make_node("Constant", [], ["s"], value_floats=[1.0, 1.0, 0.5, 0.5])
    resize = helper.make_node("Resize", ["lr", "", "s"], ["sr"], mode="cubic", antialias=1)
    save([scales, resize], ports[:1], ports[1:], tmp_path / "antialias.onnx")
    with pytest.raises(PoanError) as refusal:
        build_plan(order_for(tmp_path / "antialias.onnx"))
    assert "Antialiasing is not supported" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "engine.plan").exists()


def test_fp32_products_for_sm75_are_refused_with_the_librarys_reason(tmp_path: Path) -> None:
    ports = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 16, 16]) for n in ("a", "b", "c")
    ]
    save([helper.make_node("MatMul", ["a", "b"], ["c"])], ports[:2], ports[2:], tmp_path / "m.onnx")
    with pytest.raises(PoanError, match=r"SM75\): FP32 GEMM is not supported"):
        build_plan(order_for(tmp_path / "m.onnx", precision="fp32", sms=("75",)))


def test_a_builder_killed_by_sigsegv_is_an_error_with_the_end_of_its_log(tmp_path: Path) -> None:
    dies = (
        "import os, signal; print('choosing kernels'); print('last words', flush=True);"
        "os.kill(os.getpid(), signal.SIGSEGV)"
    )
    plan, log = tmp_path / "engine.plan", tmp_path / "engine.log"
    with pytest.raises(PoanError) as death:
        run_builder([sys.executable, "-c", dies], plan, tmp_path / "error.txt", log)
    assert str(death.value) == (
        f"{plan}: the builder died of SIGSEGV; its last words: last words (log: {log})"
    )
    assert log.read_text() == "choosing kernels\nlast words\n"


def test_the_real_builder_may_crash_and_this_process_lives(tmp_path: Path) -> None:
    """tensorrt-rtx 1.7 dies on an Attention whose query and key are one tensor."""
    ports = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT16, ["n", 1, POINTS, WIDTH])
        for n in ("q", "v", "o")
    ]
    node = helper.make_node("Attention", ["q", "q", "v"], ["o"], TRT_decomposable=1)
    save([node], ports[:2], ports[2:], tmp_path / "same.onnx", opset=23)
    with pytest.raises(PoanError, match=f"died of {signal.SIGSEGV.name}; its last words: .+"):
        build_plan(order_for(tmp_path / "same.onnx", sms=("86",)))


def test_a_builder_that_fails_in_python_says_its_status_and_last_line(tmp_path: Path) -> None:
    fails = [sys.executable, "-c", "raise ValueError('odd')"]
    with pytest.raises(PoanError, match=re.escape("ended with status 1; its last words: Value")):
        run_builder(fails, tmp_path / "engine.plan", tmp_path / "error.txt", tmp_path / "log")


def test_the_report_says_what_the_kernels_move_and_how_many_they_are(built: BuiltPlan) -> None:
    """Half-precision features go in and out of the four convolutions of the blocks at least."""
    least = 4 * 2 * 2 * CHANNELS * TILE**2
    source, found = built.order.onnx, {}
    for count in (2, 4):
        plan = source.with_name(f"{count}.plan")
        order = dataclasses.replace(built.order, plan=plan, batch=full_batches(count))
        found[count] = build_plan(order).report
        assert found[count]["bytes_moved"] >= count * least
        assert found[count]["layers"] >= 6
    assert found[4]["bytes_moved"] == 2 * found[2]["bytes_moved"]


def test_a_log_of_a_plan_for_several_batches_tells_no_bytes() -> None:
    layer = (
        "Name: conv, LayerType: gemm, Inputs: [ { Name: a, Dimensions: [{batch},1,4,4], "
        "Datatype: Half }], Outputs: [ { Name: b, Dimensions: [8,1,4,4], Datatype: Half }], x: 0\n"
    )
    assert read_build_log(layer.replace("{batch}", "8"))["bytes_moved"] == 2 * 8 * 16 * 2
    assert read_build_log(layer.replace("{batch}", "-1"))["bytes_moved"] is None
