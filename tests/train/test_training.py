"""Training: its loss, schedule, budgets, checkpoints, and what is refused."""

import errno
import itertools
import json
import math
import re
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from poan_runtime.errors import PoanError
from poan_train import cli, log, networks, train
from poan_train.checkpoint import load_network, read_checkpoint
from poan_train.config import TrainConfig, learning_rate
from poan_train.train import load_matching
from tests.train.quick import QUICK, run

pytestmark = pytest.mark.usefixtures("small_networks")


@pytest.mark.slow
def test_training_lowers_the_loss_and_writes_metrics_and_checkpoint(scan_folder, tmp_path):
    out = tmp_path / "a.pt"
    assert (
        run("--data", scan_folder, "--out", out, *QUICK, "--steps", 60, "--validate-every", 30) == 0
    )
    records = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]
    losses = [r["loss"] for r in records if "loss" in r]
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    assert [r["step"] for r in records if "tile_psnr" in r] == [30, 60, 60]
    _, facts = load_network(out)
    assert facts.training["steps"] == 60
    assert set(facts.training["data"] + facts.training["held_out"]) == {
        "sub-1_T2w.nii.gz",
        "sub-2_T2w.nii.gz",
    }
    assert any((tmp_path / "a_tensorboard").iterdir())


def test_runs_of_different_patches_are_validated_on_the_same_tiles(scan_folder, tmp_path):
    results = []
    for patch in (8, 12):
        out = tmp_path / f"{patch}.pt"
        arguments = ["--data", scan_folder, "--out", out, *QUICK, "--patch", patch, "--steps", 1]
        assert run(*arguments) == 0
        results.append(read_checkpoint(out)[0].metrics["tile_psnr_bicubic"])
    assert results[0] == results[1]


def test_a_field_of_the_network_is_set_by_name(tmp_path, capsys):
    out = tmp_path / "a.pt"
    base = ["--scale", 2, "--steps", 0, "--out", out]
    changed = ["--set", "gate=sigmoid", "--set", "pyramid=[0.5]", "--set", "zero_start=false"]
    assert run(*base, *changed) == 0
    network, facts = load_network(out)
    assert (facts.network["gate"], facts.network["zero_start"]) == ("sigmoid", False)
    assert network.config.pyramid == (0.5,)
    for setting, message in [
        ("gate", "--set needs NAME=VALUE, got 'gate'"),
        ("scale=3", "--set scale=3: use --scale"),
        ("gain=2", "poan-lite has no setting gain; it has "),
        ("blocks=x", "poan-lite: blocks: expected a number, got 'x'"),
    ]:
        assert run(*base, "--set", setting, "--overwrite") == 2
        error = capsys.readouterr().err
        assert error.startswith("poan-train: ")
        assert message in error
        assert error.count("\n") == 1


def test_a_loss_that_is_not_finite_stops_with_a_clear_word(scan_folder, tmp_path, capsys):
    out = tmp_path / "a.pt"
    code = run(
        "--data", scan_folder, "--out", out, *QUICK, "--steps", 50, "--lr", 1e30, "--clip", 1e30
    )
    assert code == 2
    message = capsys.readouterr().err
    assert "the loss is" in message
    assert "no checkpoint yet; try a smaller --lr" in message
    assert not out.exists()


@pytest.mark.slow
def test_minutes_stop_a_run_and_anneal_it(scan_folder, tmp_path, monkeypatch):
    ticks = itertools.count(step=0.05)  # a step takes 0.05 s, however busy the machine is
    clock = SimpleNamespace(monotonic=lambda: next(ticks), process_time=time.process_time)
    monkeypatch.setattr(train, "time", clock)
    out = tmp_path / "a.pt"
    assert run("--data", scan_folder, "--out", out, *QUICK, "--minutes", 0.03) == 0
    records = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]
    rates = [r["lr"] for r in records if "lr" in r]
    assert rates[-1] < 0.1 * max(rates)
    assert records[-1]["seconds"] == pytest.approx(0.03 * 60, abs=0.06)
    assert records[-1]["step"] == 35
    for record in records:  # what the bar shows is the share of the minutes
        assert record["progress"] == pytest.approx(record["seconds"] / (0.03 * 60), abs=0.04)


@pytest.mark.slow
def test_processor_minutes_stop_a_run_that_waits_between_steps(scan_folder, tmp_path, monkeypatch):
    """On a clock of 0.25 s per step, of which the processor works 0.05 s."""
    wall, cpu = itertools.count(step=0.25), itertools.count(step=0.05)
    clock = SimpleNamespace(monotonic=lambda: next(wall), process_time=lambda: next(cpu))
    monkeypatch.setattr(train, "time", clock)
    out = tmp_path / "a.pt"
    assert run("--data", scan_folder, "--out", out, *QUICK, "--cpu-minutes", 0.03) == 0
    training = load_network(out)[1].training
    assert training["cpu_seconds"] == pytest.approx(0.03 * 60, abs=0.06)
    assert training["seconds"] == pytest.approx(5 * training["cpu_seconds"])
    assert training["steps"] == 35
    records = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]
    assert min(r["lr"] for r in records if "lr" in r) < 1e-4


def test_steps_0_writes_a_seeded_checkpoint_without_data(tmp_path):
    a, b, c = (tmp_path / f"{n}.pt" for n in "abc")
    for path, seed in ((a, 1), (b, 1), (c, 2)):
        assert run("--scale", 3, "--steps", 0, "--seed", seed, "--out", path) == 0
    weights = [read_checkpoint(p)[1]["head.weight"] for p in (a, b, c)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    network, facts = load_network(a)
    assert facts.scale == 3
    assert network(torch.rand(1, 1, 6, 6)).shape == (1, 1, 18, 18)


def test_init_copies_what_fits_and_leaves_another_scales_tail(tmp_path):
    first = networks.build("poan-lite", networks.make_config("poan-lite", 2))
    torch.manual_seed(9)
    second = networks.build("poan-lite", networks.make_config("poan-lite", 4))
    fresh_tail = second.tail[2].weight.clone()
    copied = load_matching(second, first.state_dict(), tmp_path / "first.pt")
    assert 0 < copied < len(second.state_dict())
    assert torch.equal(second.head.weight, first.head.weight)
    assert torch.equal(second.tail[2].weight, fresh_tail)
    with pytest.raises(PoanError, match="not one tensor fits"):
        load_matching(second, {"other": torch.zeros(1)}, tmp_path / "first.pt")


@pytest.mark.parametrize(
    ("progress", "paper"), [(0.0, 1.0), (0.19, 1.0), (0.2, 0.5), (0.55, 0.25), (1.0, 0.0625)]
)
def test_the_papers_schedule_halves_every_fifth_of_the_run(progress, paper):
    assert learning_rate(TrainConfig(lr=1.0), 10, progress) == paper


def test_the_cosine_schedule_warms_up_and_ends_at_zero():
    config = TrainConfig(lr=1.0, schedule="cosine", warmup=10)
    assert learning_rate(config, 0, 0.0) == pytest.approx(0.1)
    assert learning_rate(config, 50, 0.5) == pytest.approx(0.5)
    assert learning_rate(config, 99, 1.0) == pytest.approx(0.0, abs=1e-12)


def test_the_warm_up_follows_a_budget_that_is_shorter_than_it():
    config = TrainConfig(lr=1.0, schedule="paper", warmup=100)
    assert learning_rate(config, 0, 0.0) == pytest.approx(0.01)
    assert learning_rate(config, 3, 0.025) == pytest.approx(0.5)
    assert learning_rate(config, 5, 0.05) == 1.0


def test_attention_joins_after_its_share_of_the_run(scan_folder, tmp_path):
    out = tmp_path / "a.pt"
    arguments = ["--data", scan_folder, *QUICK, "--steps", 4, "--out", out]
    assert run(*arguments, "--attention-from", 1.0) == 0
    assert read_checkpoint(out)[1]["body.1.out.weight"].abs().max() == 0
    assert run(*arguments, "--attention-from", 0.5, "--overwrite") == 0
    assert read_checkpoint(out)[1]["body.1.out.weight"].abs().max() > 0


def test_a_checkpoint_appears_whole_or_not_at_all(tmp_path, monkeypatch, capsys):
    path = tmp_path / "a.pt"
    run("--scale", 2, "--steps", 0, "--out", path)
    before = path.read_bytes()
    full = OSError(errno.ENOSPC, "full")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(full))
    assert run("--scale", 2, "--steps", 0, "--out", path, "--seed", 4, "--overwrite") == 2
    assert capsys.readouterr().err == f"poan-train: {path}: cannot be written: full\n"
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_is_not_replaced_unless_asked(tmp_path, capsys):
    path = tmp_path / "a.pt"
    assert run("--scale", 2, "--steps", 0, "--out", path) == 0
    before = path.read_bytes()
    assert run("--scale", 2, "--steps", 0, "--out", path, "--seed", 4) == 2
    assert "--resume goes on, --overwrite replaces it" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert run("--scale", 2, "--steps", 0, "--out", path, "--seed", 4, "--overwrite") == 0
    assert path.read_bytes() != before


def test_files_that_are_no_checkpoint_are_one_line(tmp_path):
    path = tmp_path / "a.pt"
    with pytest.raises(PoanError, match="no such checkpoint"):
        read_checkpoint(path)
    path.write_text("nonsense")
    with pytest.raises(PoanError, match="not a poan checkpoint"):
        read_checkpoint(path)
    torch.save({"weights": {}}, path)
    with pytest.raises(PoanError, match="not a poan checkpoint"):
        read_checkpoint(path)
    torch.save({"facts": '{"format": 99}', "weights": {}, "state": None}, path)
    with pytest.raises(PoanError, match="checkpoint format 99"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--steps", -1], "--steps must be at least 0, got -1"),
        (["--lr", "nan"], "--lr must be positive, got nan"),
        (["--clip", -1], "--clip must be positive, got -1"),
        (["--warmup", -5], "--warmup must be at least 0, got -5"),
        (["--seed", -1], "--seed must be at least 0, got -1"),
        (["--ema", 1], "--ema must be at least 0 and below 1, got 1"),
        (["--attention-from", 5], "--attention-from must be between 0 and 1, got 5"),
        (["--val-share", 2], "--val-share must be at least 0 and below 1, got 2"),
        (["--set", "channels=0"], "poan-lite: channels: expected at least 1, got 0"),
        (["--hold-out", "sub-1", "sub-2"], "no volume is left to train on"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(options, reason, scan_folder, tmp_path, capsys):
    base = ["--data", scan_folder, "--out", tmp_path / "a.pt", *QUICK, "--steps", 1]
    assert run(*base, *options) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "a.pt").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--minutes", -1], "--minutes must be positive, got -1"),
        (["--minutes", "nan"], "--minutes must be positive, got nan"),
        (["--cpu-minutes", 0], "--cpu-minutes must be positive, got 0"),
    ],
)
def test_a_budget_that_cannot_be_is_one_line(options, reason, scan_folder, tmp_path, capsys):
    assert run("--data", scan_folder, "--out", tmp_path / "a.pt", *QUICK, *options) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a", "a.jsonl", "a.onnx"])
def test_a_checkpoint_has_the_name_of_one(name, scan_folder, tmp_path, capsys):
    out = tmp_path / name  # the metrics go to a.jsonl, TensorBoard's to a folder a_tensorboard
    for steps in (0, 1):
        assert run("--data", scan_folder, "--out", out, *QUICK, "--steps", steps) == 2
        said = capsys.readouterr().err
        assert said == f"poan-train: {out}: expected a checkpoint's name, NAME.pt\n"
    assert not out.exists()


@pytest.mark.slow
def test_a_network_that_cannot_be_exported_is_refused_before_the_first_step(
    scan_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(cli, "LONG", 1)
    out = tmp_path / "a.pt"
    arguments = ["--data", scan_folder, "--out", out, *QUICK, "--steps", 2]
    assert run(*arguments, "--set", "alpha=0.7") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("poan-train: poan-export: cannot export body.1.channel.pool.power: ")
    assert said.endswith("--no-export-trial trains it all the same")
    assert not out.exists()
    assert run(*arguments, "--set", "alpha=0.7", "--no-export-trial") == 0
    assert run(*arguments, "--overwrite") == 0  # and what can be exported is trained


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scale", "2"], "--data is needed"),
        (["--scale", "2", "--data", "absent"], "no such folder"),
        (["--scale", "2", "--data", "SCANS", "--batch", "0"], "--batch must be positive, got 0"),
        (
            ["--scale", "2", "--data", "SCANS", "--ema", "1"],
            "--ema must be at least 0 and below 1, got 1.0",
        ),
        (["--scale", "2", "--data", "SCANS", "--contrast", "PD"], "contrast PD"),
        (["--scale", "2", "--data", "SCANS", "--val", "SCANS"], "are both in --data and in --val"),
        (["--scale", "2", "--data", "SCANS", "--init", "absent.pt"], "no such checkpoint"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_2(
    arguments, message, scan_folder, tmp_path, capsys
):
    named = [str(scan_folder) if a == "SCANS" else a for a in arguments]
    assert run(*named, "--out", tmp_path / "a.pt", "--steps", 2) == 2
    error = capsys.readouterr().err
    assert error.startswith("poan-train: ")
    assert message in error
    assert error.count("\n") == 1


def test_bf16_autocast_trains_to_a_finite_loss(scan_folder, tmp_path):
    out = tmp_path / "a.pt"
    arguments = ["--data", scan_folder, "--out", out, *QUICK, "--steps", 3, "--precision", "bf16"]
    assert run(*arguments) == 0
    records = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]
    assert all(math.isfinite(r["loss"]) for r in records if "loss" in r)


def test_without_a_terminal_progress_is_in_lines_by_the_budget(
    scan_folder, tmp_path, monkeypatch, capsys
):
    ticks = itertools.count(step=20.0)
    monkeypatch.setattr(log, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    arguments = ["--data", scan_folder, "--out", tmp_path / "a.pt", *QUICK, "--steps", 8]
    assert run(*arguments) == 0
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("step ")]
    # a record every 20 s and a line at most every 30: every second one, and the validation
    assert [x.split(":")[0].split(",")[:2] for x in lines] == [
        ["step 1", " 0.0 %"],
        ["step 3", " 25.0 %"],
        ["step 5", " 50.0 %"],
        ["step 7", " 75.0 %"],
        ["step 8", " 100.0 %"],
    ]
    # 25 % took 60 s of this clock
    assert "3 min left" in lines[1]


def test_quiet_says_nothing_of_a_training_that_is_well(scan_folder, tmp_path, capsys):
    out = tmp_path / "a.pt"
    arguments = ["--data", scan_folder, "--out", out, *QUICK, "--steps", 2, "--quiet"]
    assert run(*arguments, "--val-share", 0.5) == 0
    assert capsys.readouterr() == ("", "")
    assert out.is_file()
    assert len(out.with_suffix(".jsonl").read_text().splitlines()) >= 2


def test_the_split_is_printed_with_who_is_set_aside(scan_folder, tmp_path, capsys):
    aside = tmp_path / "aside.txt"
    aside.write_text("sub-2  # of another scanner\n\n")
    arguments = ["--data", scan_folder, "--out", tmp_path / "a.pt", *QUICK, "--steps", 1]
    assert run(*arguments, "--contrast", "MR", "--hold-out", aside, "--val-share", 0) == 0
    said = capsys.readouterr()
    last = said.out.splitlines()[-1]
    assert re.fullmatch(
        r".*a\.pt: 1 steps; [0-9.]+ dB on tiles, bicubic [0-9.]+, sinc [0-9.]+", last
    )
    assert said.out.splitlines() == [
        "trains on 2 volumes, subjects: sub-1, sub-3",
        "validates on 0 volumes, subjects: none",
        "set aside: sub-2",
        last,
    ]
    assert "no volume to validate on: tile_psnr is that of training volumes" in said.err
    facts = read_checkpoint(tmp_path / "a.pt")[0]
    assert facts.contrast == "MR"
    assert facts.training["set_aside"] == ["sub-2"]
    assert facts.degradation["acquisition"]["snr"] == [12.0, 100.0]
