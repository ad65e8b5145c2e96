"""One training in several processes."""

import json
import os
import subprocess
import sys

import pytest

from poan_train.checkpoint import read_checkpoint
from tests.train.quick import QUICK, SMALL, run

pytestmark = pytest.mark.usefixtures("small_networks")


def torchrun(tmp_path, port, patch, *arguments, status=0):
    """Two processes that run ``patch`` and then poan-train; what they said."""
    script = tmp_path / "go.py"
    script.write_text(
        "import os, sys\nfrom poan_train import cli, data, networks, train\n"
        f"networks.LITE.update({SMALL!r})\n{patch}\nsys.exit(cli.main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-addr", "127.0.0.1", "--master-port", str(port), str(script)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == status, done.stderr[-2000:]
    return done.stderr


def records(out):
    return [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]


def losses(out):
    return [record["loss"] for record in records(out) if "loss" in record]


@pytest.mark.slow
def test_two_processes_have_the_first_50_losses_of_one(scan_folder, tmp_path):
    together, alone = tmp_path / "together.pt", tmp_path / "alone.pt"
    arguments = ["--data", scan_folder, *QUICK, "--steps", 50, "--batch", 5, "--lr", 1e-3]
    torchrun(tmp_path, 29517, "", *arguments, "--out", together)  # three patches and two
    assert run(*arguments, "--out", alone) == 0
    assert len(losses(alone)) == 50
    # sums are taken in another order: 1.5e-7 measured, and Adam may magnify that
    assert losses(together) == pytest.approx(losses(alone), rel=1e-4)


@pytest.mark.slow
def test_each_process_decodes_its_own_volumes(scan_folder, tmp_path):
    patch = (
        "make = data.make_pair\n"
        "def noted(source, *rest):\n"
        "    with open(os.environ['XDG_CACHE_HOME'] + '-' + os.environ['RANK'], 'a') as file:\n"
        "        print(source.path.name, file=file)\n"
        "    return make(source, *rest)\n"
        "data.make_pair = noted\n"
    )
    torchrun(
        tmp_path,
        29519,
        patch,
        *("--data", scan_folder, "--out", tmp_path / "a.pt", *QUICK, "--steps", 1),
    )
    read = [(tmp_path / f"cache-{rank}").read_text().split() for rank in (0, 1)]
    assert sorted(map(len, read)) == [1, 1]
    assert sorted(read[0] + read[1]) == ["sub-1_T2w.nii.gz", "sub-2_T2w.nii.gz"]
    facts = read_checkpoint(tmp_path / "a.pt")[0]
    assert list(facts.training["hashes"]) == facts.training["data"]


@pytest.mark.slow
def test_a_training_that_loses_a_process_stops_in_one_line_and_goes_on_with_fewer(
    scan_folder, tmp_path
):
    """The second process is killed in its fourth step; then one goes on alone."""
    patch = (
        "update = train.Run.update_average\n"
        "def dying(self, decay):\n"
        "    if os.environ['RANK'] == '1' and self.step == 4:\n"
        "        os.kill(os.getpid(), 9)\n"
        "    update(self, decay)\n"
        "train.Run.update_average = dying\n"
    )
    cut, whole = tmp_path / "cut.pt", tmp_path / "whole.pt"
    arguments = ["--data", scan_folder, *QUICK, "--steps", 8, "--batch", 4]
    said = torchrun(tmp_path, 29520, patch, *arguments, "--out", cut, status=1)
    own = [line for line in said.splitlines() if line.startswith("poan-train: ")]
    assert own == [
        "poan-train: another process of this training is gone, at step 4; --resume goes on from "
        f"{cut}, on as many processes as there are"
    ]
    assert read_checkpoint(cut)[2]["step"] == 4
    assert run(*arguments, "--out", cut, "--resume") == 0
    assert run(*arguments, "--out", whole) == 0
    assert [r["step"] for r in records(cut) if "loss" in r] == [*range(1, 9)]
    assert losses(cut) == pytest.approx(losses(whole), rel=1e-4)  # as above


@pytest.mark.slow
def test_more_processes_than_patches_are_refused(scan_folder, tmp_path):
    arguments = ["--data", scan_folder, "--out", tmp_path / "a.pt", *QUICK, "--batch", 1]
    said = torchrun(tmp_path, 29521, "", *arguments, status=1)
    assert "--batch 1: expected a patch for each of 2 processes" in said


@pytest.mark.slow
def test_ranks_whose_clocks_differ_stop_at_one_step(scan_folder, tmp_path):
    """The second rank's clock runs twice as fast: by itself it would stop at half of the steps."""
    patch = (
        "import itertools, time, types\n"
        "ticks = itertools.count(step=0.05 * (1 + int(os.environ['RANK'])))\n"
        "train.time = types.SimpleNamespace(\n"
        "    monotonic=lambda: next(ticks), process_time=time.process_time)\n"
    )
    out = tmp_path / "a.pt"
    torchrun(tmp_path, 29518, patch, "--data", scan_folder, "--out", out, *QUICK, "--minutes", 0.02)
    assert records(out)[-1]["step"] == read_checkpoint(out)[2]["step"] == 23
