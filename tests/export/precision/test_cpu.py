"""bf16 on a CPU: what the exporter finds, and that its gate can fail."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from poan_export.cli import main
from poan_export.gate.parity import Gate, norm_error, root_of, run_torch
from poan_export.gate.real_tiles import Case, Cases
from poan_export.precision.cpu import CpuAnswers, cpu_precision, root_parts, run_openvino
from poan_export.precision.quantise import calibrate, quantise, residual_convolutions
from poan_export.rewrite.network import rewrite, rules_for
from poan_export.rewrite.root import Scheme
from poan_export.trace.onnx_export import export_twin, without_stages
from poan_export.trace.stages import OUTPUT, pools_of
from poan_runtime.commands import run as run_cli
from poan_runtime.engines.backend import EngineOptions, open_backend
from poan_runtime.engines.openvino.pieces import pieces_of
from poan_runtime.engines.precision import cpu_has_bf16
from poan_runtime.models.find import find_model
from poan_runtime.models.manifest import read_manifest
from poan_train.checkpoint import save_checkpoint
from tests.tiny.networks import facts_of, tiny_network

pytest.importorskip("openvino")

TILE = 16
RULES = rules_for(Scheme(name="quintic", iterations=7), "flat")


@pytest.fixture(scope="module")
def gate() -> Gate:
    seeded = np.random.default_rng(0)
    lr = seeded.uniform(0.1, 1, (2, 1, TILE, TILE)).astype(np.float32)
    items = tuple(
        Case(name=f"real {i}", lr=one, hr=one.repeat(2, 1).repeat(2, 2)) for i, one in enumerate(lr)
    )
    network = tiny_network()
    return Gate(
        cases=Cases(items=items, source="noise"),
        network=network,
        reference=run_torch(network, lr, torch.float64),
        float32=run_torch(network, lr, torch.float32),
        trained=True,
    )


@pytest.fixture(scope="module")
def file(gate: Gate, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cpu") / "model.onnx"
    onnx.save(without_stages(export_twin(rewrite(gate.network, RULES), TILE)), path)
    return path


def test_z_is_the_exact_root_of_its_features_while_the_rest_runs_in_bf16(
    gate: Gate, file: Path
) -> None:
    if not cpu_has_bf16():
        pytest.skip("this CPU has no bf16")
    stages = run_openvino(file, root_parts(gate), gate.cases.batch)
    assert not np.array_equal(
        stages[OUTPUT], run_openvino(file, [], gate.cases.batch, "fp32")[OUTPUT]
    )
    ((z, (features, pool)),) = pools_of(gate.network).items()
    exact = root_of(stages[features], pool)
    assert norm_error(stages[z], exact) < 1e-3  # float32's; 2e-2 where one product was bf16


@pytest.fixture(scope="module")
def int8_file(gate: Gate, file: Path) -> Path:
    model = onnx.load(file)
    scales = calibrate(model, gate.cases.batch.astype(np.float32), "int8")
    convolutions = residual_convolutions(model.graph)
    path = file.with_name("model.int8.onnx")
    onnx.save(quantise(model, [scales[conv.input[0]] for conv in convolutions], "int8"), path)
    return path


def test_cutting_a_graph_keeps_its_eight_bit_convolutions(
    gate: Gate, file: Path, int8_file: Path
) -> None:
    from poan_runtime.engines.openvino.library import core

    graph = core().read_model(int8_file)
    graph.reshape([1, 1, TILE, TILE])
    precisions = []
    for piece in pieces_of(graph, root_parts(gate)):
        compiled = core().compile_model(piece.graph, "CPU")
        for node in compiled.get_runtime_model().get_ops():
            facts = node.get_rt_info()
            if facts["layerType"].astype(str) == "Convolution":
                precisions.append(facts["runtimePrecision"].astype(str))
    wanted = len(residual_convolutions(onnx.load(file).graph))
    assert wanted > 0
    assert sum(precision in ("u8", "i8") for precision in precisions) == wanted


@pytest.mark.slow
def test_an_int8_file_beside_float32_gets_a_verdict_for_cpus(
    tmp_path: Path,
) -> None:
    if not cpu_has_bf16():
        pytest.skip("this CPU has no bf16")
    network = tiny_network()
    save_checkpoint(tmp_path / "tiny.pt", facts_of(network, steps=1), network.state_dict())
    out = tmp_path / "tiny"
    arguments = ["--ckpt", str(tmp_path / "tiny.pt"), "--halo", "1", "--overlap", "2"]
    assert (
        main([*arguments, "--tile", str(TILE), "--int8", "--engine", "none", "--allow-worse"]) == 0
    )
    manifest = read_manifest(out)
    assert manifest.attention.form == "flat"
    assert [entry.file for entry in manifest.cpu_precisions] == ["model.onnx", "model.int8.onnx"]
    (loss,) = [
        check
        for check in manifest.cpu_precisions[1].parity.checks
        if check.metric == "psnr_loss_db"
    ]
    assert loss.tolerance == 0.05
    opened = open_backend(find_model(out / "model.int8.onnx"), EngineOptions())
    assert (opened.name, opened.precision) == ("openvino", "bf16")
    before = manifest.cpu_precisions[1].parity.checks
    for precision in ("auto", "fp32"):  # the verdict on bf16, and on the file in float32
        arguments = ["--verify", str(out / "model.int8.onnx"), "--precision", precision]
        assert run_cli.main(arguments) == 0
    after = read_manifest(out).cpu_precisions[1].parity.checks
    assert loss in after
    assert len(after) == len(before)


def test_a_loss_of_psnr_beyond_the_bound_fails_the_verdict(gate: Gate) -> None:
    truth = np.stack([case.hr for case in gate.cases.items if case.hr is not None])
    full = truth + np.float32(0.01)
    answers = {
        loss: CpuAnswers(
            stages={OUTPUT: gate.reference[OUTPUT]},
            cases=gate.cases.items,
            full=full,
            half=truth + np.float32(0.01 * 10 ** (loss / 20)),
        )
        for loss in (0.005, 0.02)
    }
    for loss, verdict in ((0.005, "pass"), (0.02, "fail")):
        entry = cpu_precision("model.onnx", answers[loss], gate, lambda line: None)
        check = entry.parity.checks[-1]
        assert entry.parity.verdict == verdict
        assert check.metric == "psnr_loss_db"
        assert check.value == pytest.approx(loss, rel=1e-2)  # float32 images


def test_a_file_that_the_disk_does_not_give_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.onnx"):
        run_openvino(tmp_path / "model.onnx", [], np.zeros((1, 1, TILE, TILE), np.float32))
