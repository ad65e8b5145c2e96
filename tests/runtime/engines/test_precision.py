"""bf16 on a CPU: taken where a verdict allows it, refused or declined in one line elsewhere."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from poan_runtime.commands.run import main
from poan_runtime.engines import precision as cpu_precision
from poan_runtime.engines.backend import EngineOptions, open_backend
from poan_runtime.errors import PoanError
from poan_runtime.models.find import find_model
from poan_runtime.models.manifest import read_manifest

openvino = pytest.importorskip("openvino")


def entry(verdict: str = "pass", version: str | None = None) -> dict[str, Any]:
    return {
        "engine": "openvino",
        "version": version or openvino.__version__,
        "precision": "bf16",
        "file": "model.onnx",
        "float32_parts": [],
        "parity": {"verdict": verdict, "checks": []},
    }


@pytest.fixture
def with_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_precision, "cpu_has_bf16", lambda: True)


@pytest.mark.usefixtures("with_bf16")
def test_auto_takes_bf16_by_a_passing_verdict_and_says_so(make_model: Any) -> None:
    model = find_model(make_model(cpu_precisions=[entry()]))
    opened = open_backend(model, EngineOptions())
    assert (opened.name, opened.precision) == ("openvino", "bf16")
    assert "bf16 passed the parity gate" in opened.reason
    plain = open_backend(model, EngineOptions(precision="fp32"))
    assert plain.precision != "bf16"


@pytest.mark.usefixtures("with_bf16")
@pytest.mark.parametrize(
    ("entries", "obstacle"),
    [
        ([], "no verdict on model.onnx in bf16"),
        ([entry("fail")], "verdict on bf16 is fail"),
        ([entry(version="2031.7.0")], r"judged with openvino 2031\.7.*--verify --precision bf16"),
    ],
    ids=["none", "fail", "another release"],
)
def test_without_a_verdict_auto_stays_in_float32_and_bf16_is_refused(
    make_model: Any, entries: list[dict[str, Any]], obstacle: str
) -> None:
    model = find_model(make_model(cpu_precisions=entries))
    for backend in ("auto", "openvino"):
        opened = open_backend(model, EngineOptions(backend=backend))
        assert opened.precision in (None, "fp32")
    with pytest.raises(PoanError, match=obstacle):
        open_backend(model, EngineOptions(precision="bf16"))


def test_a_cpu_without_bf16_runs_float32_with_one_line(
    make_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_precision, "cpu_has_bf16", lambda: False)
    model = find_model(make_model(cpu_precisions=[entry()]))
    opened = open_backend(model, EngineOptions(precision="bf16"))
    assert opened.precision == "fp32"
    assert opened.notices == ("this CPU has no bf16: running in float32",)
    assert open_backend(model, EngineOptions()).notices == ()


@pytest.mark.usefixtures("with_bf16")
def test_verify_judges_bf16_here_and_writes_its_own_entry(make_model: Any) -> None:
    folder: Path = make_model(cpu_precisions=[entry(version="2031.7.0")])
    tiles = np.random.default_rng(1).uniform(size=(2, 1, 16, 16)).astype(np.float32)
    add_vectors(folder, tiles, tiles.repeat(2, 2).repeat(2, 3))
    assert main(["--verify", str(folder), "--precision", "bf16"]) == 0
    old, new = read_manifest(folder).cpu_precisions
    assert (old.version, new.version) == ("2031.7.0", openvino.__version__)
    assert new.parity.verdict == "pass"
    assert new.parity.checks[0].tolerance == 8e-2
    add_vectors(folder, tiles, 1 + tiles.repeat(2, 2).repeat(2, 3))
    assert main(["--verify", str(folder), "--precision", "bf16"]) == 3
    assert read_manifest(folder).cpu_precisions[1].parity.verdict == "fail"


@pytest.mark.usefixtures("with_bf16")
def test_what_failed_when_exported_fails_still_after_verify(
    make_model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = {"file": "model.onnx", "stage": "output", "case": "4 real tiles", "reason": "none"}
    lost |= {"metric": "psnr_loss_db", "value": 0.5, "tolerance": 0.01}
    judged = {**entry(), "parity": {"verdict": "fail", "checks": [lost]}}
    folder: Path = make_model(cpu_precisions=[judged])
    tiles = np.random.default_rng(1).uniform(size=(2, 1, 16, 16)).astype(np.float32)
    add_vectors(folder, tiles, tiles.repeat(2, 2).repeat(2, 3))
    assert main(["--verify", str(folder), "--precision", "bf16"]) == 3
    assert "psnr_loss_db 0.5 at output, when exported" in capsys.readouterr().out
    (found,) = read_manifest(folder).cpu_precisions
    assert found.parity.verdict == "fail"
    assert [check.metric for check in found.parity.checks] == ["psnr_loss_db", "unit_error"]
    # what a run would take is in float32, and that is right
    assert main(["--verify", str(folder)]) == 0
    assert "fp32" in capsys.readouterr().out


def add_vectors(folder: Path, tiles: Any, answers: Any) -> None:
    np.savez(folder / "vectors.npz", input_noise=tiles, output_noise=answers)
    document = json.loads((folder / "manifest.json").read_text())
    from poan_runtime.files import sha256_of

    document["vectors"] = {"name": "vectors.npz", "sha256": sha256_of(folder / "vectors.npz")}
    (folder / "manifest.json").write_text(json.dumps(document))


def test_a_float32_part_stays_in_float32_between_pieces_in_bf16() -> None:
    """x -> 1.001 x (a) -> a - 1 (b), and b + 0.5 x + a: a crosses the cuts, and so does x."""
    from poan_runtime.engines.openvino.library import core
    from poan_runtime.engines.openvino.pieces import Chain, compile_chains

    names = [("Mul", ["lr", "c1"], "a"), ("Sub", ["a", "one"], "b"), ("Add", ["b", "c2"], "d")]
    nodes = [helper.make_node(op, given, [made]) for op, given, made in names]
    nodes += [
        helper.make_node("Add", ["d", "a"], ["e"]),
        helper.make_node("Add", ["e", "lr"], ["sr"]),
    ]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1, 4, 4])
        for name in ("lr", "sr")
    ]
    constants = [
        helper.make_tensor(name, TensorProto.FLOAT, [], [value])
        for name, value in (("c1", 1.001), ("one", 1.0), ("c2", 0.5))
    ]
    made = helper.make_model(
        helper.make_graph(nodes, "cut", ports[:1], ports[1:], constants),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.checker.check_model(made)
    graph = core().read_model(made.SerializeToString())
    (chain,) = compile_chains(
        graph, tile=4, precision="bf16", float32_parts=[("a", "b")], threads=1
    )
    assert isinstance(chain, Chain)
    x = np.full((1, 1, 4, 4), 1.0, np.float32)
    answer = chain(x)
    a, b = chain.tensor("a"), chain.tensor("b")
    assert np.array_equal(b, a - 1)  # exact in float32; bf16 has steps of 4e-3 around 1
    assert abs(answer[0, 0, 0, 0] - (b + 0.5 + a + 1)[0, 0, 0, 0]) < 2e-2  # two bf16 roundings
