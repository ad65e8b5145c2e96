"""Parts of an exported network: their work by hand, their sum, and the benchmark end to end."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from benchmarks import limit
from benchmarks.parts import cut, features_at, macs_of, read_for_one_tile
from benchmarks.peak import cpu_peaks
from poan_runtime.errors import PoanError
from poan_runtime.models.manifest import read_manifest
from tests.tiny.networks import TILE


def one_node(kind: str, left: list[int], right: list[int], out: list[int]) -> onnx.ModelProto:
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("a", left), ("b", right), ("y", out))
    ]
    node = helper.make_node(kind, ["a", "b"], ["y"])
    return helper.make_model(helper.make_graph([node], "one", ports[:2], ports[2:]))


@pytest.mark.parametrize(
    ("kind", "left", "right", "out", "macs"),
    [
        ("Conv", [1, 3, 8, 8], [5, 3, 3, 3], [1, 5, 6, 6], 5 * 36 * 27),
        ("MatMul", [2, 4, 7], [2, 7, 3], [2, 4, 3], 2 * 4 * 3 * 7),
        ("Gemm", [1, 6], [6, 9], [1, 9], 54),
        ("Add", [1, 6], [1, 6], [1, 6], 0),
    ],
)
def test_macs_of_a_node_are_those_by_hand(
    kind: str, left: list[int], right: list[int], out: list[int], macs: int
) -> None:
    assert macs_of(one_node(kind, left, right, out)) == macs


def test_the_parts_of_the_graph_cost_what_the_manifest_says(tiny: tuple[Path, Path]) -> None:
    manifest = read_manifest(tiny[1])
    parts = cut(read_for_one_tile(tiny[1] / "model.onnx", TILE))
    found: dict[str, float] = {}
    for part in parts:
        found[part.belongs_to] = found.get(part.belongs_to, 0.0) + part.macs / 1e9
    head = TILE**2 * 9 * 8 / 1e9  # computed in both halves
    expected = dict(manifest.gmac_per_part)
    expected["backbone"] += head
    # a product with a one-row or symmetric factor may be folded or merged by the ONNX optimiser
    assert found == {name: pytest.approx(value, rel=0.02) for name, value in expected.items()}


def test_the_parts_put_together_are_the_network(tiny: tuple[Path, Path]) -> None:
    graph = read_for_one_tile(tiny[1] / "model.onnx", TILE)
    lr = np.random.default_rng(0).random((1, 1, TILE, TILE), np.float32)
    parts = cut(graph)
    inner = sorted({name for part in parts for name in part.inputs} - {"lr"})
    values = {"lr": lr, **features_at(graph, inner, lr)}
    for part in parts:
        session = onnxruntime.InferenceSession(part.graph.SerializeToString())
        outputs = [value.name for value in part.graph.graph.output]
        found = session.run(outputs, {name: values[name] for name in part.inputs})
        whole = features_at(graph, outputs, lr)
        for name, value in zip(outputs, found, strict=True):
            scale = np.abs(whole[name]).max()
            # the same nodes on the same values; only fusion differs
            np.testing.assert_allclose(value, whole[name], rtol=0, atol=1e-5 * scale)


def test_a_graph_without_stages_is_refused() -> None:
    with pytest.raises(PoanError, match="expected one attention block in the graph, found 0"):
        cut(one_node("MatMul", [1, 2, 2], [1, 2, 2], [1, 2, 2]))


def test_peaks_are_measured_in_each_precision() -> None:
    peaks = cpu_peaks(0.0, sizes=(64,), cores=1)
    assert set(peaks) == {"fp32", "bf16", "int8", "copy"}
    assert all(value > 0 for library in peaks.values() for value in library.values())
    assert {"numpy", "torch", "openvino"} <= set(peaks["fp32"])


def test_the_benchmark_runs_and_its_rows_are_consistent(
    tiny: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"sizes": (64,), "cores": 1}
    monkeypatch.setattr(limit, "cpu_peaks", lambda seconds, cores: cpu_peaks(0.0, **small))
    out = tmp_path / "limit.json"
    more = ["--engines", "onnxruntime-fp32", "--rounds", "1", "--seconds", "0", "--cores", "1"]
    assert limit.main(["--model", str(tiny[1]), "--out", str(out), *more]) == 0
    document = json.loads(out.read_text())
    rows = {row["part"]: row for row in document["rows"]}
    parts = ["backbone", "point attention", "patch attention", "square root", "tail"]
    assert sum(rows[part]["share_of_sum"] for part in parts) == pytest.approx(1)
    for part in [*parts, limit.WHOLE]:
        row = rows[part]
        assert row["gflops"] == pytest.approx(2e3 * row["gmac"] / row["ms_per_tile"])
        assert row["of_peak"] == pytest.approx(row["gflops"] / document["peak"]["fp32"])
    assert out.with_suffix(".png").stat().st_size > 1000
