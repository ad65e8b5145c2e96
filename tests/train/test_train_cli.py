"""What poan-train says of its options, of its budget, and while it runs."""

import argparse
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from poan_train import log
from poan_train.checkpoint import Facts, read_checkpoint
from poan_train.data import load_pairs
from poan_train.degrade import sinc
from poan_train.options import parser
from poan_train.subjects import find_sources
from poan_train.train import _validation
from tests.train.quick import QUICK, run

pytestmark = pytest.mark.usefixtures("small_networks")


@pytest.mark.parametrize("second", ["--minutes", "--cpu-minutes"])
def test_two_budgets_are_refused(second, scan_folder, tmp_path, capsys):
    arguments = ["--data", scan_folder, "--out", tmp_path / "a.pt", *QUICK, "--steps", 2]
    with pytest.raises(SystemExit) as left:
        run(*arguments, second, 1)
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{second}: not allowed with argument --steps" in said
    assert [path.name for path in tmp_path.glob("a*")] == []


def test_the_help_has_examples_exit_statuses_and_a_word_on_every_option(capsys):
    with pytest.raises(SystemExit):
        run("--help")
    said = " ".join(capsys.readouterr().out.split())
    assert "examples: poan-train --data scans" in said
    assert "exit status: 0 done; 2 something" in said
    assert "all, any and MR all mean those of every such contrast" in said
    mute = [action.option_strings for action in parser()._actions if not action.help]
    assert mute == []


def test_the_examples_of_the_help_are_arguments_that_it_takes():
    epilog = (parser().epilog or "").splitlines()
    lines = [line.split("  ")[1] for line in epilog if line.startswith("  poan-train")]
    assert len(lines) == 4
    for line in lines:
        assert isinstance(parser().parse_args(line.split()[1:]), argparse.Namespace)


def test_untrained_weights_are_called_so(tmp_path, capsys):
    out = tmp_path / "a.pt"
    assert run("--scale", 2, "--steps", 0, "--out", out) == 0
    assert capsys.readouterr().out == f"{out}: 0 steps; untrained weights\n"
    assert run("--scale", 2, "--steps", 0, "--out", out, "--overwrite", "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_what_poan_made_is_not_trained_on_and_a_line_says_so(scan_folder, tmp_path, capsys):
    (scan_folder / "sub-1_T2w.nii.gz").rename(scan_folder / "sub-1_desc-sr_T2w.nii.gz")
    out = tmp_path / "a.pt"
    assert run("--data", scan_folder, "--out", out, *QUICK, "--steps", 1, "--quiet") == 0
    warning = f"poan-train: warning: {scan_folder}: 1 result of poan left out\n"
    assert warning in capsys.readouterr().err
    assert read_checkpoint(out)[0].training["data"] == ["sub-2_T2w.nii.gz"]


class Sinc(nn.Module):
    """Sinc interpolation as a network."""

    def forward(self, x):
        return torch.from_numpy(sinc(x[:, 0].numpy(), 2))[:, None]


def test_a_network_that_is_sinc_is_validated_as_sinc_is(scan_folder):
    pairs = list(load_pairs(find_sources(scan_folder, "T2"), 2, "bicubic"))
    facts = Facts(
        arch="poan-lite",
        network={"scale": 2},
        contrast="T2",
        degradation={"method": "bicubic", "scale": 2},
        intensity={},
    )
    found = _validation(facts, pairs, "cpu")(Sinc())
    assert found["tile_psnr"] == found["tile_psnr_sinc"]
    assert np.isfinite(found["tile_psnr_sinc"])
    assert found["tile_psnr_sinc"] != found["tile_psnr_bicubic"]


def test_between_two_records_there_is_a_line_every_30_seconds(
    scan_folder, tmp_path, monkeypatch, capsys
):
    ticks = itertools.count(step=20.0)  # a step takes 20 s of this clock
    monkeypatch.setattr(log, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    arguments = ["--data", scan_folder, "--out", tmp_path / "a.pt", *QUICK, "--steps", 7]
    assert run(*arguments, "--log-every", 50) == 0
    said = [x for x in capsys.readouterr().err.splitlines() if x.startswith("step ")]
    assert [int(x.split(",")[0].removeprefix("step ")) for x in said] == [1, 3, 5, 7, 7]
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 2  # step 1, the validation
