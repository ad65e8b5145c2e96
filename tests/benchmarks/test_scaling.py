"""Scaling and kernels in a tiny setting: figures that must hold, not speed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import kernels, scaling


@pytest.mark.slow
def test_each_question_is_measured_and_a_later_call_replaces_that_one_alone(
    tiny: tuple[Path, Path], tmp_path: Path
) -> None:
    ckpt, model = tiny
    out = tmp_path / "scaling.json"
    named = ["--ckpt", str(ckpt), "--model", str(model), "--out", str(out), "--cores", "1"]
    small = ["--base", "1", "--times", "1,2", "--tiles", "8,12", "--batches", "1,2"]
    small += ["--size", "32", "--seconds", "0", "--engine", "onnxruntime-fp32"]
    assert scaling.main([*named, *small]) == 0
    first = json.loads(out.read_text())
    assert [row["slices"] for row in first["volumes"]["rows"]] == [1, 2]
    assert first["volumes"]["samples"]["2"][0]["tiles"] == {"run": 8, "skipped": 0, "of_air": 0}
    assert {(row["tile"], row["part"]) for row in first["tiles"]["rows"]} == {
        (tile, part)
        for tile in (8, 12)
        for part in ("backbone", "point attention", "patch attention", "square root", "tail")
    }
    assert [row["batch"] for row in first["batches"]["rows"]] == [1, 2]
    assert [row["threads"] for row in first["threads"]["rows"]] == [1]
    assert scaling.main([*named, *small, "--only", "batches"]) == 0
    again = json.loads(out.read_text())
    assert again["volumes"] == first["volumes"]
    assert again["batches"] != first["batches"]


def test_the_line_through_times_is_found_and_how_far_they_lie_off() -> None:
    rows = [{"slices": n, "wall_s": 1 + 2 * n, "peak_mib": 100 + n} for n in (1, 2, 4)]
    found = scaling.fit(rows)
    assert (found["start_s"], found["s_per_slice"]) == (1, 2)
    assert found["largest_deviation_from_line"] < 1e-9
    assert found["memory_of_largest_over_smallest"] == pytest.approx(104 / 101)
    bent = [*rows[:2], {**rows[2], "wall_s": 18}]
    assert scaling.fit(bent)["largest_deviation_from_line"] > 0.1


@pytest.mark.slow
def test_kernels_agree_with_the_published_forms(tmp_path: Path) -> None:
    out = tmp_path / "kernels.json"
    small = ["--channels", "16", "--batches", "2", "--tiles", "10", "--seconds", "0"]
    assert kernels.main([*small, "--cores", "1", "--out", str(out)]) == 0
    document = json.loads(out.read_text())
    errors = {row["kernel"]: row["error_of_z"] for row in document["roots"]}
    assert errors["eigh float64"] == 0
    assert errors["quintic 7"] < 1e-3 < errors["Newton-Schulz 5"]  # the gate's tolerance
    torch_rows = [row for row in document["attention"] if row["kernel"].startswith("torch")]
    assert len(torch_rows) == 4
    for row in torch_rows:
        assert row["error"] < 1e-5  # float32, sums of 64 terms
        assert row["gflops"] == pytest.approx(2e3 * row["gmac"] / row["ms"])
    gmac = {row["kernel"]: row["gmac"] for row in torch_rows}
    assert gmac["torch unfold"] == 9 * gmac["torch box whole"]
    assert gmac["torch box whole"] * 1e9 == 96 * 10**2 * 8**2


def test_the_covariances_of_the_roots_are_hard_enough() -> None:
    sigma = kernels.covariances(16, 2)
    condition = torch.linalg.cond(sigma.double())
    assert (condition > 1e3).all()
    assert np.allclose(sigma, sigma.mT, atol=1e-6 * float(sigma.abs().max()))
