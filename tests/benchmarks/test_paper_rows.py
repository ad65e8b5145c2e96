"""Rows of the papers' tables: what each trains with, and what is reckoned of them."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.paper_tables.rows import Protocol, plan, train_command
from benchmarks.paper_tables.summary import cells, read_rows, spread
from poan_runtime.errors import PoanError


def test_the_plan_has_every_row_once_and_seeds_for_what_is_trained():
    rows = plan(
        [1, 2, 3], ["nlm", "edsr"], ["T1", "T2"], [2, 4], [0, 7], "poan", ("PD", 2), ("T1", 4)
    )
    assert len(rows) == len({r.name for r in rows}) == 2 * 2 * (1 + 2) + 2 * (8 + 4)
    assert [r.ablation for r in rows if r.table == 3 and r.seed == 7] == [
        f"table3-{x}" for x in "ABCD"
    ]


def test_rows_that_train_differently_never_share_a_checkpoint(tmp_path):
    protocol = Protocol(train=tmp_path, val=tmp_path, out=tmp_path, budget=("--steps", "2"))
    longer = Protocol(train=tmp_path, val=tmp_path, out=tmp_path, budget=("--steps", "3"))
    rows = plan([1, 3], ["poan", "poan+"], ["T2"], [2], [0, 1], "poan", ("T2", 2), ("T2", 2))
    outs = {(r.name, p): train_command(r, p, 1e-3)[-1] for r in rows for p in (protocol, longer)}
    for p in (protocol, longer):
        assert outs["table1_T2_x2_poan_seed0", p] == outs["table1_T2_x2_poan+_seed0", p]
    assert len(set(outs.values())) == len(outs) - 4  # poan+ of two seeds and two budgets


def test_spreads_are_standard_deviations_over_volumes_and_over_seeds():
    values = np.array([[30.0, 34.0], [31.0, 37.0]])
    got = spread(values)
    assert got.mean == 33.0
    assert got.volumes == pytest.approx(np.std([30.5, 35.5], ddof=1))
    assert got.seeds == pytest.approx(np.std([32.0, 34.0], ddof=1))
    assert got.text(1) == "33.0 ±3.5 (seeds ±1.4)"
    assert np.isnan(spread(values[:1]).seeds)
    assert spread(values[:1, :1]).text(2) == "30.00"


def test_a_cell_stands_beside_the_papers_network_of_full_size(tmp_path):
    measures = {
        f"{m}_{p}_peak": v for m, v in (("psnr", 30.0), ("ssim", 0.9)) for p in ("volume", "slice")
    }
    better = {**measures, "psnr_volume_peak": 31.5}
    row = {"table": 1, "label": "poan-lite+", "arch": "poan-lite+", "contrast": "T2", "scale": 4}
    content = {"row": row, "parameters": 5, "trained": None, "protocol": {"budget": []}}
    content["volumes"] = [{"volume": "a", "bicubic": measures, "sr": better}]
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/table1.json").write_text(json.dumps(content))
    [cell] = cells(read_rows(tmp_path))
    assert (cell.paper_psnr, cell.paper_ssim) == (32.83, 0.9495)
    assert cell.paper_gain == pytest.approx(32.83 - 27.86)
    assert cell.gain.mean == pytest.approx(1.5)
    assert cells(read_rows(tmp_path), "slice-peak", "slice-peak")[0].gain.mean == 0
    with pytest.raises(PoanError, match="row poan-lite\\+ was made before psnr_whole_volume"):
        cells(read_rows(tmp_path), "whole-volume")


def test_a_networks_own_options_are_for_its_rows_alone(tmp_path):
    own = ("poan: --attention-from 0.5",)
    protocol = Protocol(train=tmp_path, val=tmp_path, out=tmp_path, budget=("--steps", "2"))
    with_own = replace(protocol, own=own)
    rows = plan([1, 3], ["edsr", "poan"], ["T2"], [2], [0], "poan", ("T2", 2), ("T2", 2))
    for row in rows:
        command = train_command(row, with_own, 1e-3)
        last = command[len(command) - 1 - command[::-1].index("--attention-from") + 1]
        assert last == ("0.5" if row.arch == "poan" else "0"), row.name
