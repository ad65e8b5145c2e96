"""A training goes on where it was, as the same training or not at all."""

import os
import signal

import pytest
import torch

from poan_train import checkpoint, train
from poan_train.checkpoint import read_checkpoint
from tests.train.quick import QUICK, run

pytestmark = pytest.mark.usefixtures("small_networks")


def test_resuming_continues_bit_for_bit(scan_folder, tmp_path, monkeypatch):
    whole, halves = tmp_path / "whole.pt", tmp_path / "halves.pt"
    arguments = ["--data", scan_folder, *QUICK, "--steps", 8, "--validate-every", 4]
    assert run(*arguments, "--out", whole) == 0

    save = train.save_checkpoint

    def save_then_die(*args, **kwargs):
        save(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "save_checkpoint", save_then_die)
    assert run(*arguments, "--out", halves) == 130
    monkeypatch.setattr(train, "save_checkpoint", save)
    assert read_checkpoint(halves)[2]["step"] == 4
    assert run(*arguments, "--out", halves, "--resume") == 0

    (_, a, state_a), (_, b, state_b) = read_checkpoint(whole), read_checkpoint(halves)
    assert state_b["step"] == 8
    for left, right in ((a, b), (state_a["network"], state_b["network"])):
        assert all(torch.equal(left[k], right[k]) for k in left)
    moments = [s["optimiser"]["state"] for s in (state_a, state_b)]
    assert all(torch.equal(moments[0][i]["exp_avg"], moments[1][i]["exp_avg"]) for i in moments[0])


def test_a_resume_onto_another_network_is_refused(scan_folder, tmp_path, capsys):
    out = tmp_path / "a.pt"
    assert run("--data", scan_folder, "--out", out, *QUICK, "--steps", 2) == 0
    code = run("--data", scan_folder, "--out", out, *QUICK, "--steps", 3, "--resume", "--scale", 4)
    assert code == 2
    assert "another configuration" in capsys.readouterr().err


def test_resume_needs_a_checkpoint(scan_folder, tmp_path, capsys):
    out = tmp_path / "a.pt"
    assert run("--data", scan_folder, "--out", out, *QUICK, "--steps", 2, "--resume") == 2
    assert capsys.readouterr().err == f"poan-train: --resume: {out}: no such checkpoint\n"


@pytest.fixture
def begun(scan_folder, tmp_path):
    """A training of two steps: its checkpoint and the arguments that go on with it."""
    out = tmp_path / "a.pt"
    arguments = ["--data", scan_folder, "--out", out, *QUICK, "--steps", 2, "--licence", "CC0"]
    assert run(*arguments) == 0
    return out, ["--out", out, *QUICK, "--steps", 3, "--resume"]


def test_a_resume_that_is_another_training_is_refused_by_name(begun, scan_folder, tmp_path, capsys):
    out, more = begun
    before = out.read_bytes()
    other = tmp_path / "other"
    other.mkdir()
    for path in scan_folder.iterdir():  # T1 under the name of T2: other bytes
        (other / path.name.replace("sub-1_T2w", "sub-4_T1w")).write_bytes(path.read_bytes())
    (other / "sub-1_T2w.nii.gz").write_bytes((scan_folder / "sub-3_T1w.nii.gz").read_bytes())
    for changed, said in [
        (["--data", scan_folder, "--contrast", "T1"], "contrast T2, now T1"),
        (["--data", other], "data without sub-1_T2w.nii.gz and with sub-1_T2w.nii.gz"),
        (["--data", scan_folder, "--lr", 2e-4], "--lr 0.001, now 0.0002"),
        (["--data", scan_folder, "--seed", 3], "--seed 0, now 3"),
        (["--data", scan_folder, "--lr-model", "bicubic"], "LR model method scanner, now bicubic"),
    ]:
        assert run(*more, *changed) == 2
        *warnings, error = capsys.readouterr().err.splitlines()
        assert said in error
        assert "--allow-changes" in error
        assert all("warning: no volume to validate on" in line for line in warnings)
        assert out.read_bytes() == before


def test_data_are_the_same_wherever_they_lie_and_a_longer_run_is_the_same_training(
    begun, scan_folder, tmp_path
):
    out, more = begun
    moved = scan_folder.rename(tmp_path / "moved")
    assert run(*more, "--data", moved) == 0
    training = read_checkpoint(out)[0].training
    assert (training["steps"], training["licence"]) == (3, "CC0")
    assert "before" not in training


@pytest.mark.parametrize("budget", ["--steps", "--minutes", "--cpu-minutes"])
def test_a_resume_of_a_budget_that_is_used_up_says_that_nothing_was_trained(
    budget, begun, scan_folder, capsys
):
    out, _ = begun
    facts, weights, state = read_checkpoint(out)
    state |= {"seconds": 90.0, "cpu_seconds": 180.0}  # 1.5 and 3 minutes
    checkpoint.save_checkpoint(out, facts, weights, state)
    more = ["--data", scan_folder, "--out", out, *QUICK, "--resume", budget]
    capsys.readouterr()
    assert run(*more, 1) == 0
    used = {"--steps": "2 of 1", "--minutes": "1.5 of 1", "--cpu-minutes": "3 of 1"}[budget]
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"poan-train: warning: nothing trained: {budget} counts the earlier run too "
        f"(used: {used}); say more"
    )
    assert read_checkpoint(out)[0].training["steps"] == 2
    assert run(*more[:-1], "--steps", 3) == 0
    assert "nothing trained" not in capsys.readouterr().err


def test_a_permitted_change_remembers_the_data_and_licence_of_before(begun, scan_folder):
    out, more = begun
    changed = ["--data", scan_folder, "--contrast", "T1", "--licence", "CC BY"]
    assert run(*more, *changed, "--allow-changes") == 0
    training = read_checkpoint(out)[0].training
    assert (training["licence"], training["data"]) == ("CC BY", ["sub-3_T1w.nii.gz"])
    (before,) = training["before"]
    assert before["licence"] == "CC0"
    assert before["contrast"] == "T2"
    assert len(before["data"]) == 1
    started = out.with_name("b.pt")
    fresh = ["--data", scan_folder, "--out", started, *QUICK, "--steps", 1, "--init", out]
    assert run(*fresh) == 0
    licences = [b["licence"] for b in read_checkpoint(started)[0].training["before"]]
    assert licences == ["CC0", "CC BY"]


def test_a_checkpoint_from_before_hashes_is_compared_by_names(begun, scan_folder, capsys):
    out, more = begun
    facts, weights, state = read_checkpoint(out)
    del facts.training["hashes"]
    checkpoint.save_checkpoint(out, facts, weights, state)
    assert run(*more, "--data", scan_folder) == 0
    facts.training["data"] = ["sub-9_T2w.nii.gz"]
    checkpoint.save_checkpoint(out, facts, weights, state)
    assert run(*more, "--data", scan_folder) == 2
    assert "data without sub-9_T2w.nii.gz and with sub-" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_step_that_was_reached_and_resuming_goes_on_bit_for_bit(
    number, scan_folder, tmp_path, monkeypatch, capsys
):
    whole, cut = tmp_path / "whole.pt", tmp_path / "cut.pt"
    arguments = ["--data", scan_folder, *QUICK, "--steps", 6]
    assert run(*arguments, "--out", whole) == 0
    update, before = train.Run.update_average, signal.getsignal(number)

    def interrupted(self, decay):
        update(self, decay)
        if self.step == 3:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(train.Run, "update_average", interrupted)
    capsys.readouterr()
    assert run(*arguments, "--out", cut) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"poan-train: stopped at step 3; {cut} holds it, and --resume goes on"
    assert signal.getsignal(number) is before
    monkeypatch.setattr(train.Run, "update_average", update)
    assert read_checkpoint(cut)[2]["step"] == 3
    assert run(*arguments, "--out", cut, "--resume") == 0
    left, right = (read_checkpoint(p)[1] for p in (whole, cut))
    assert all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize("before", [False, True])
def test_a_training_leaves_the_smallest_numbers_as_they_were(scan_folder, tmp_path, before):
    torch.set_flush_denormal(before)
    try:
        assert run("--data", scan_folder, *QUICK, "--steps", 1, "--out", tmp_path / "net.pt") == 0
        assert bool(torch.tensor(1e-310, dtype=torch.float64).mul(1.0) == 0) is before
    finally:
        torch.set_flush_denormal(False)
