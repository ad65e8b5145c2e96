import builtins
import csv
import json
import sys
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from PIL import Image

from benchmarks.paper_tables import __main__ as tool
from benchmarks.paper_tables.report import _ordered, title, write_tables
from benchmarks.paper_tables.rows import (
    Protocol,
    eval_command,
    options_for,
    plan,
    run_row,
    train_command,
)
from benchmarks.paper_tables.scanner import scanner_table
from benchmarks.paper_tables.summary import Cell, agreement, spread
from poan_runtime.errors import PoanError
from poan_train import networks
from poan_train.acquire import KINDS
from poan_train.convention import Preparation

SMALL = {
    "LITE": {"channels": 4, "blocks": 1, "poab_after": 1, "embedding": 2},
    "EDSR_LITE": {"channels": 4, "blocks": 1},
}
QUICK = ["--batch", "1", "--patch", "8", "--precision", "fp32", "--log-every", "1"]
QUICK += ["--val-share", "0.5"]


@pytest.fixture(autouse=True)
def _small_networks(monkeypatch):
    for preset, values in SMALL.items():
        for name, value in values.items():
            monkeypatch.setitem(getattr(networks, preset), name, value)


@pytest.fixture
def val_folder(tmp_path):
    folder = tmp_path / "val"
    folder.mkdir()
    rng = np.random.default_rng(5)
    for name in ("sub-8_T2w", "sub-9_T2w"):
        coarse = rng.integers(100, 900, (10, 11, 3)).astype(np.int16)
        volume = np.kron(coarse, np.ones((4, 4, 1), np.int16))
        nibabel.save(
            nibabel.Nifti1Image(volume, np.diag([1, 1, 4, 1.0])), folder / f"{name}.nii.gz"
        )
    return folder


def run(scan_folder, val_folder, out, *more, extra=QUICK):
    arguments = ["--data", scan_folder, "--val", val_folder, "--out", out, "--tile", 10]
    return tool.main([*map(str, [*arguments, *more]), "--", *extra])


@pytest.mark.slow
def test_a_budget_of_two_steps_makes_every_table(scan_folder, val_folder, tmp_path, capsys):
    out = tmp_path / "tables"
    table1 = ["--tables", 1, "--arch", "bicubic", "nlm", "edsr-lite", "poan-lite", "poan-lite+"]
    table1 += ["--contrast", "T2", "--scale", 2, "--seeds", 0, 1, "--steps", 2]
    assert run(scan_folder, val_folder, out, *table1) == 0
    names = sorted(p.name for p in (out / "rows").iterdir())
    learned = [f"{a}_seed{s}" for a in ("edsr-lite", "poan-lite", "poan-lite+") for s in (0, 1)]
    assert names == sorted(
        f"table1_T2_x2_{n}.json" for n in ["bicubic_seed0", "nlm_seed0", *learned]
    )
    row = json.loads((out / "rows/table1_T2_x2_edsr-lite_seed1.json").read_text())
    assert row["commands"][0].startswith("poan-train --data ")
    assert "--arch edsr-lite" in row["commands"][0]
    assert "--seed 1 --lr 0.001" in row["commands"][0]
    assert row["trained"]["steps"] == 2
    assert row["protocol"]["budget"] == ["--steps", "2"]
    assert {v["volume"] for v in row["volumes"]} == {"sub-8_T2w.nii.gz", "sub-9_T2w.nii.gz"}
    # both orientations of the ensemble come from the same training
    assert len(list((out / "checkpoints").glob("*.pt"))) == 4

    text = (out / "table1.md").read_text()
    assert "| | " in text
    assert "T2 x2 | bicubic | 0 | 0 | 0.0 | " in text
    assert "38.28/0.9824 | +4.84" in text
    assert "Budget of every network: `--steps 2`" in text
    with (out / "table1.csv").open() as stream:
        records = {r["label"]: r for r in csv.DictReader(stream)}
    assert float(records["bicubic"]["gain"]) == 0.0
    assert records["edsr-lite"]["seeds"] == "2"
    assert float(records["edsr-lite"]["gain_sd_seeds"]) > 0
    assert records["bicubic"]["gain_sd_seeds"] == "nan"
    with Image.open(out / "table1.png") as picture:
        assert picture.width > 300

    before = {p: p.stat().st_mtime_ns for p in (out / "rows").iterdir()}
    capsys.readouterr()
    assert run(scan_folder, val_folder, out, *table1) == 0
    assert {p: p.stat().st_mtime_ns for p in (out / "rows").iterdir()} == before
    assert tool.main(["--out", str(out), "--report"]) == 0


def test_rows_are_made_one_at_a_time_and_another_protocol_is_refused(
    scan_folder, val_folder, tmp_path, capsys
):
    out = tmp_path / "tables"
    table3 = ["--tables", 3, "--table3-contrast", "T2", "--rows", 1]
    for count in (1, 2):
        assert run(scan_folder, val_folder, out, *table3, "--steps", 2) == 0
        assert len(list((out / "rows").iterdir())) == count
        assert f"{4 - count} rows left" in capsys.readouterr().out
    text = (out / "table3.md").read_text()
    assert "A: none (poan-lite)" in text
    assert "| +0.00 | 26.71 | +0.00 |" in text
    assert "| 28.94 | +2.23 |" in text
    assert "of 1 pairs of rows stand in the paper's order" in text
    assert "--ablation table3-B" in text
    a, b = (json.loads((out / f"rows/table3_T2_x4_{x}_seed0.json").read_text()) for x in "AB")
    assert a["parameters"] < b["parameters"]
    capsys.readouterr()
    assert run(scan_folder, val_folder, out, *table3, "--steps", 3) == 2
    assert "made under another protocol; choose another --out" in capsys.readouterr().err


def test_each_network_keeps_the_learning_rate_that_is_best_on_held_out_subjects(
    scan_folder, val_folder, tmp_path
):
    protocol = Protocol(
        train=scan_folder,
        val=val_folder,
        out=tmp_path / "tables",
        budget=("--steps", "2"),
        rates=(1e-3, 1e30),
        tile=10,
        extra=(*QUICK, "--clip", "1e30", "--warmup", "0"),
    )
    [row] = plan([1], ["edsr-lite"], ["T2"], [2], [0], "poan-lite", ("T2", 2), ("T1", 4))
    with pytest.raises(
        PoanError, match=r"this failed, see above: poan-train --data .* --lr 1e\+30"
    ):
        run_row(row, protocol)
    gentle = Protocol(**{**vars(protocol), "rates": (1e-3, 0.3)})
    assert run_row(row, gentle)
    content = json.loads((tmp_path / f"tables/rows/{row.name}.json").read_text())
    trials = {t["lr"]: t["held_out_psnr"] for t in content["trials"]}
    assert content["trained"]["lr"] == max(trials, key=trials.get) == 1e-3
    assert not run_row(row, gentle)


@pytest.mark.slow
def test_every_network_tries_the_same_options_and_some_alone_before_the_whole_budget(
    scan_folder, val_folder, tmp_path
):
    tries = ("--patch 6", "poan-lite: --set gate=sigmoid", "edsr-lite: --set residual_scale=0.5")
    protocol = Protocol(
        train=scan_folder,
        val=val_folder,
        out=tmp_path / "tables",
        budget=("--steps", "3"),
        search=("--steps", "1"),
        rates=(1e-3, 1e-4),
        tries=tries,
        tile=10,
        extra=tuple(QUICK),
    )
    rows = plan(
        [1], ["edsr-lite", "poan-lite"], ["T2"], [2], [0], "poan-lite", ("T2", 2), ("T1", 4)
    )
    assert [options_for(row, protocol.tries) for row in rows] == [
        ["--patch 6", "--set residual_scale=0.5"],
        ["--patch 6", "--set gate=sigmoid"],
    ]
    for row in rows:
        assert run_row(row, protocol)
        content = json.loads((tmp_path / f"tables/rows/{row.name}.json").read_text())
        trials = content["trials"]
        assert [t["steps"] for t in trials] == [1, 1, 1, 1]
        first = max(trials[:2], key=lambda t: t["held_out_psnr"])
        assert [t["lr"] for t in trials] == [1e-3, 1e-4, first["lr"], first["lr"]]
        best = max(trials, key=lambda t: t["held_out_psnr"])
        trained = content["trained"]
        assert (trained["lr"], trained["options"]) == (best["lr"], best["options"])
        assert trained["steps"] == 3
    write_tables(tmp_path / "tables")
    text = (tmp_path / "tables/table1.md").read_text()
    assert "then `--patch 6`" in text
    assert "each tried under `--steps 1`; what is best on subjects held out" in text


def test_a_row_made_before_there_was_a_search_is_kept(scan_folder, val_folder, tmp_path):
    protocol = Protocol(
        train=scan_folder, val=val_folder, out=tmp_path, budget=("--steps", "1"), tile=10
    )
    [row] = plan([1], ["bicubic"], ["T2"], [2], [0], "poan-lite", ("T2", 2), ("T1", 4))
    assert run_row(row, protocol)
    path = tmp_path / f"rows/{row.name}.json"
    content = json.loads(path.read_text())
    del content["protocol"]["tries"], content["protocol"]["search"]
    path.write_text(json.dumps(content))
    assert not run_row(row, protocol)
    with pytest.raises(PoanError, match="made under another protocol"):
        run_row(row, Protocol(**{**vars(protocol), "tries": ("--patch 6",)}))


def cell(label, paper, *psnr):
    mean = spread(np.array([psnr]))
    return Cell(
        table=1,
        label=label,
        arch=label,
        contrast="T2",
        scale=2,
        seeds=1,
        volumes=len(psnr),
        parameters=1,
        steps=1,
        minutes=1,
        by_volume=psnr,
        psnr=mean,
        ssim=mean,
        gain=mean,
        paper_psnr=paper,
        paper_ssim=None,
        paper_gain=None,
    )


def test_agreement_counts_pairs_in_the_papers_order_and_those_without_a_doubt():
    cells = [cell("a", 30.0, 20.0, 30.0), cell("b", 31.0, 21.0, 31.0), cell("c", 32.0, 19.0, 32.5)]
    found = agreement([*cells, cell("ours", None, 50.0, 50.0)])
    # a < b on both volumes; c is over a and under b on average, but not on every volume
    assert (found.agree, found.pairs, found.clear_agree, found.clear) == (2, 3, 1, 1)
    assert str(found) == (
        "2 of 3 pairs of rows stand in the paper's order; of the 1 pairs that every volume puts in "
        "one order, 1."
    )


def test_table_1_lists_the_networks_in_the_papers_order(tmp_path):
    labels = ["poan-lite", "bicubic", "seran-lite", "csn-lite", "poan-lite+", "nlm", "edsr-lite"]
    names = [c.label for c in _ordered([cell(label, 1.0, 2.0) for label in labels])]
    assert names == [
        *("bicubic", "nlm", "edsr-lite", "csn-lite", "seran-lite", "poan-lite", "poan-lite+")
    ]


def test_the_conventions_go_to_training_and_evaluation_but_not_to_a_scanners_rows(tmp_path):
    preparation = Preparation(zero_filling="keep", slices="all", round_lr=True)
    protocol = Protocol(
        train=tmp_path,
        val=tmp_path,
        out=tmp_path,
        budget=("--steps", "2"),
        preparation=preparation,
    )
    args = [1], ["edsr", "nlm"], ["T2"], [2], [0], "poan", ("T2", 2), ("T1", 4)
    scanner, *papers = plan(*args, scanner=True)
    assert (scanner.name, [r.name for r in papers]) == (
        "table1_scanner_T2_x2_edsr_seed0",
        ["table1_T2_x2_edsr_seed0", "table1_T2_x2_nlm_seed0"],
    )
    options = ["--zero-filling", "keep", "--slices", "all", "--round-lr"]
    for command in (
        train_command(papers[0], protocol, 1e-3),
        eval_command(papers[0], protocol, tmp_path, tmp_path),
    ):
        assert " ".join(options) in " ".join(map(str, command))
    trained = train_command(scanner, protocol, 1e-3)
    measured = eval_command(scanner, protocol, tmp_path, tmp_path)
    assert trained[trained.index("--degradation") + 1] == "scanner"
    assert "snr15" in measured[measured.index("--lr-model") :]
    assert not {"--zero-filling", "--round-lr"} & {*trained, *measured}


def test_the_conventions_change_what_a_row_measures_and_another_is_refused(
    scan_folder, val_folder, tmp_path, capsys
):
    out = tmp_path / "tables"
    table1 = ["--tables", 1, "--arch", "bicubic", "--contrast", "T2", "--scale", 2, "--steps", 1]
    assert run(scan_folder, val_folder, out, *table1, "--round-lr", "--psnr", "whole-volume") == 0
    row = json.loads((out / "rows/table1_T2_x2_bicubic_seed0.json").read_text())
    assert row["protocol"]["preparation"]["round_lr"] is True
    assert "--round-lr" in row["commands"][0]
    text = (out / "table1.md").read_text()
    assert "PSNR whole-volume, SSIM volume-peak; volumes: a scanner's zero-filling undone" in text
    assert "and LR in integers" in text
    mean = np.mean([v["sr"]["psnr_whole_volume"] for v in row["volumes"]])
    assert f"T2 x2 | {mean:.2f}/" in text
    assert run(scan_folder, val_folder, out, *table1) == 2
    assert "made under another protocol" in capsys.readouterr().err


def test_a_contrast_without_volumes_stays_empty_with_the_reason(scan_folder, val_folder, tmp_path):
    out = tmp_path / "tables"
    table1 = ["--tables", 1, "--arch", "bicubic", "--contrast", "PD", "T2", "--scale", 3]
    assert run(scan_folder, val_folder, out, *table1, "--steps", 1) == 0
    text = (out / "table1.md").read_text()
    assert "| PD x3 | - |" in text
    assert "- PD: no PD volume among those to test on." in text
    assert "T1 x2, T1 x3, T1 x4, T2 x2, T2 x4: not run." in text


def test_a_scanners_table_has_a_column_per_kind_and_gains_over_the_better_rival(
    scan_folder, val_folder, tmp_path
):
    out = tmp_path / "tables"
    table1 = ["--tables", 1, "--arch", "edsr-lite", "--contrast", "T2", "--scale", 2, "--scanner"]
    assert run(scan_folder, val_folder, out, *table1, "--steps", 1) == 0
    row = json.loads((out / "rows/table1_scanner_T2_x2_edsr-lite_seed0.json").read_text())
    text = (out / "table1_scanner.md").read_text()
    head = next(line for line in text.splitlines() if line.startswith("| contrast"))
    assert head == f"| contrast, scale | network | seeds | {' | '.join(KINDS)} |"
    own = [v for v in row["volumes"] if v["kind"] == "snr15"]
    psnr, more = np.mean([(v["sr"]["psnr"], v["gain_psnr"]) for v in own], axis=0)
    assert f"{psnr:.2f} ({more:+.2f})" in text
    assert "| T2 x2 | sinc | |" in text
    assert (out / "table1.md").is_file()
    assert scanner_table([row]).count("poan-eval") == 1


def test_an_ablation_on_another_contrast_than_the_papers_says_so_in_its_title():
    assert title(2, [replace(cell("A", 1.0, 2.0), table=2)]) == (
        "Table 2: point, patch and pyramid similarity, on T2 x2 (the paper's: PD x2)"
    )


def test_ixi_is_split_by_subject_into_folders_of_links(tmp_path):
    ixi = tmp_path / "ixi"
    ixi.mkdir()
    for i in range(576):
        for contrast in ("T1", "T2"):
            (ixi / f"IXI{i:03}-Guys-0001-{contrast}.nii.gz").touch()
    train, test = tool.link_ixi(ixi, tmp_path / "out")
    assert len(list(train.iterdir())) == 1000
    assert {p.name[:6] for p in test.iterdir()} == {f"IXI{i}" for i in range(500, 570)}
    few = tmp_path / "few"
    few.mkdir()
    for i in range(10):
        (few / f"IXI{i:03}-Guys-0001-T2.nii.gz").touch()
    train, test = tool.link_ixi(few, tmp_path / "out2")
    assert len(list(train.iterdir())) == 9
    assert not {p.name for p in train.iterdir()} & {p.name for p in test.iterdir()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "need --data and --val, or --ixi"),
        (["--data", "SCANS", "--val", "VAL"], "state the budget"),
        (["--data", "SCANS", "--val", "VAL", "--steps", "-1"], "above zero"),
        (["--data", "SCANS", "--val", "SCANS", "--steps", "2"], "both in --data and in --val"),
        (["--arch", "pan"], "no network pan; there are"),
        (["--report"], "holds no rows yet"),
        (["--ixi", "absent", "--steps", "2"], "absent: no such folder"),
    ],
)
def test_what_the_user_can_mend_is_one_line(
    arguments, message, scan_folder, val_folder, tmp_path, capsys
):
    named = [{"SCANS": str(scan_folder), "VAL": str(val_folder)}.get(a, a) for a in arguments]
    assert tool.main([*named, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("paper_tables: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_missing_scikit_image_says_how_to_get_it(
    scan_folder, val_folder, tmp_path, monkeypatch, capsys
):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.split(".")[0] == "skimage":
            raise ModuleNotFoundError("No module named 'skimage'", name="skimage")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.delitem(sys.modules, "poan_train.classical", raising=False)
    options = ["--tables", 1, "--arch", "nlm", "--contrast", "T2", "--scale", 2, "--steps", 1]
    assert run(scan_folder, val_folder, tmp_path / "out", *options) == 2
    said = capsys.readouterr().err
    assert "skimage is missing; run: pip install " in said
    assert "'.[classical]'" in said
