"""`poan-bids`: what it makes, skips, and lists as failed."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from poan_runtime.commands.bids import main, parser
from poan_runtime.commands.run import main as poan_run
from poan_runtime.models.find import shipped_models

RESULT = "sub-01/anat/sub-01_res-2x_desc-sr_T2w"
TWO = ["sub-01/anat/sub-01_T2w.nii.gz", "sub-02/anat/sub-02_T1w.nii.gz"]


def run(*arguments: object) -> tuple[int, str, str]:
    """Status, stdout and stderr of a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()


def test_a_result_holds_the_bytes_that_poan_run_writes(
    make_dataset: Any, nearest_x2: Path, tmp_path: Path
) -> None:
    dataset, out = make_dataset(TWO), tmp_path / "out"
    code, told, _ = run(dataset, out, "participant", "--model", nearest_x2)
    assert code == 0
    assert "2 done, 0 skipped, 0 failed" in told
    alone = tmp_path / "alone.nii.gz"
    assert poan_run([str(nearest_x2), str(dataset / TWO[0]), "-o", str(alone)]) == 0
    assert (out / f"{RESULT}.nii.gz").read_bytes() == alone.read_bytes()


def test_quiet_says_what_failed_and_no_more(
    make_dataset: Any, nearest_x2: Path, tmp_path: Path
) -> None:
    dataset, out = make_dataset(TWO), tmp_path / "out"
    (dataset / TWO[1]).write_bytes(b"no scan")
    code, told, amiss = run(dataset, out, "participant", "--quiet", "--model", nearest_x2)
    assert (code, told) == (1, "")
    assert amiss.splitlines()[-1].startswith("poan-bids: sub-02_T1w: ")
    assert (out / f"{RESULT}.nii.gz").is_file()


def test_a_name_in_a_failure_cannot_break_its_line(make_dataset: Any, tmp_path: Path) -> None:
    model = tmp_path / "a\nb\x1b[31m"
    model.mkdir()
    for dry in ((), ("--dry-run",)):
        code, out, err = run(
            make_dataset() if not dry else tmp_path / "raw",
            tmp_path / "out",
            "participant",
            "--model",
            model,
            *dry,
        )
        assert code == (0 if dry else 1)
        assert r"a\nb\x1b[31m" in (out if dry else err)
        assert "\x1b" not in out + err


def test_a_sidecar_names_source_model_and_what_was_changed(
    make_dataset: Any, nearest_x2: Path, tmp_path: Path
) -> None:
    dataset, out = make_dataset(), tmp_path / "out"
    (dataset / "T2w.json").write_text('{"EchoTime": 0.1, "PixelBandwidth": 5}')
    assert run(dataset, out, "participant", "--model", nearest_x2)[0] == 0
    document = json.loads((out / f"{RESULT}.json").read_text())
    assert document["Sources"] == ["bids:raw:sub-01/anat/sub-01_T2w.nii.gz"]
    assert document["SkullStripped"] is False
    assert document["EchoTime"] == 0.1
    assert "PixelBandwidth" not in document, "of the acquired voxels, not of these"
    own = document["Poan"]
    assert own["model"] == "tiny_x2"
    # nearest-neighbour SR is no sinc: some of the measured band goes, not all of it
    assert 0.01 < own["relative_change_of_measured_band"] < 1
    links = json.loads((out / "dataset_description.json").read_text())["DatasetLinks"]
    assert links == {"raw": "../raw"}


def test_the_derivative_passes_the_validator(
    make_dataset: Any, nearest_x2: Path, tmp_path: Path
) -> None:
    validator = Path(sys.executable).with_name("bids-validator-deno")
    if not validator.is_file():
        pytest.skip("needs bids-validator-deno from PyPI beside Python")
    names = [
        *TWO,
        "sub-02/ses-1/anat/sub-02_ses-1_acq-ax_run-2_FLAIR.nii",
        "sub-02/ses-1/anat/sub-02_ses-1_PDw.nii.gz",
        "sub-02/ses-1/anat/sub-02_ses-1_inplaneT2.nii.gz",
    ]
    dataset, out = make_dataset(names), tmp_path / "out"
    assert run(dataset, out, "participant", "--model", nearest_x2)[0] == 0
    assert run(dataset, out, "group")[0] == 0

    def errors() -> list[Any]:
        found = subprocess.run([validator, "--json", out], capture_output=True, text=True)
        issues = json.loads(found.stdout)["issues"]["issues"]
        return [issue for issue in issues if issue["severity"] == "error"]

    assert errors() == []
    (out / ".bidsignore").unlink()
    assert errors() != [], "a validator that looks"


def test_what_is_done_is_skipped_until_scan_or_settings_change(
    make_dataset: Any, nearest_x2: Path, tmp_path: Path
) -> None:
    dataset, out = make_dataset(TWO), tmp_path / "out"
    command = (dataset, out, "participant", "--model", nearest_x2)
    run(*command)
    image = out / f"{RESULT}.nii.gz"
    written = image.stat().st_mtime_ns
    assert "0 done, 2 skipped" in run(*command)[1]
    assert image.stat().st_mtime_ns == written
    assert "2 done, 0 skipped" in run(*command, "--self-ensemble")[1]
    run(*command)
    source = nib.load(dataset / TWO[0])
    nib.save(
        nib.Nifti1Image(source.get_fdata().astype(np.int16) + 1, source.affine), dataset / TWO[0]
    )
    assert "1 done, 1 skipped" in run(*command)[1]


@pytest.mark.parametrize("damage", ["cut", "no sidecar", "gone"])
def test_a_result_that_is_not_whole_is_made_again(
    damage: str, make_dataset: Any, nearest_x2: Path, tmp_path: Path
) -> None:
    dataset, out = make_dataset(), tmp_path / "out"
    command = (dataset, out, "participant", "--model", nearest_x2)
    run(*command)
    image, sidecar = out / f"{RESULT}.nii.gz", out / f"{RESULT}.json"
    whole = image.read_bytes()
    if damage == "cut":
        image.write_bytes(whole[:-1])
    elif damage == "gone":
        image.unlink()
    else:
        sidecar.unlink()
    assert "1 done, 0 skipped" in run(*command)[1]
    assert image.read_bytes() == whole
    assert sidecar.is_file()


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_broken_scan_is_listed_and_the_others_are_made(
    processes: str, make_dataset: Any, nearest_x2: Path, tmp_path: Path
) -> None:
    dataset, out = make_dataset(TWO), tmp_path / "out"
    (dataset / TWO[1]).write_bytes(b"no scan")
    command = (dataset, out, "participant", "--model", nearest_x2, "--n-procs", processes)
    code, told, failed = run(*command)
    assert code == 1
    assert "1 done, 0 skipped, 1 failed" in told
    assert "sub-02_T1w" in failed.splitlines()[-1]
    assert sorted(path.name for path in out.glob("sub-*/anat/*")) == [
        "sub-01_res-2x_desc-sr_T2w.json",
        "sub-01_res-2x_desc-sr_T2w.nii.gz",
    ]
    assert run(dataset, out, "group")[0] == 0
    page = (out / "poan-report.html").read_text()
    assert "<h1>1 scans super-resolved, 1 failed</h1>" in page
    assert "sub-02/anat/sub-02_T1w.nii.gz" in page


def test_a_dry_run_makes_nothing(make_dataset: Any, nearest_x2: Path, tmp_path: Path) -> None:
    dataset, out = make_dataset(TWO), tmp_path / "out"
    code, told, _ = run(dataset, out, "participant", "--dry-run", "--model", nearest_x2)
    assert code == 0
    assert told.splitlines()[0] == f"sub-01_T2w: to do with tiny_x2: {RESULT}.nii.gz"
    assert not out.exists()


def test_shares_part_the_scans(make_dataset: Any, nearest_x2: Path, tmp_path: Path) -> None:
    names = [f"sub-{i}/anat/sub-{i}_T2w.nii.gz" for i in range(5)]
    dataset, out = make_dataset(names), tmp_path / "out"
    counts = [
        run(dataset, out, "participant", "--model", nearest_x2, "--share", f"{k}/2")[1]
        for k in (1, 2)
    ]
    assert "3 done, 0 skipped" in counts[0]
    assert "2 done, 0 skipped" in counts[1]


def test_each_contrast_gets_its_model(make_dataset: Any, tmp_path: Path) -> None:
    names = [f"sub-1/anat/sub-1_{s}.nii" for s in ("T1w", "T2w", "PDw", "FLAIR", "inplaneT2")]
    dataset = make_dataset(names)
    told = run(dataset, tmp_path / "out", "participant", "--dry-run", "--model", "PDw=mr_x4")[1]
    models = {line.split(":")[0]: line.split()[4] for line in told.splitlines()}
    assert models == {
        "sub-1_T1w": "t1_x2:",
        "sub-1_T2w": "t2_x2:",
        "sub-1_PDw": "mr_x4:",
        "sub-1_FLAIR": "mr_x2:",
        "sub-1_inplaneT2": "t2_x2:",
    }


def test_sizes_of_memory_are_read_with_their_units() -> None:
    def size(text: str) -> Any:
        return parser().parse_args(["a", "b", "participant", "--mem", text]).mem

    assert [size(text) for text in ("16G", "1.5GiB", "900mb", "4096")] == [
        16 << 30,
        3 << 29,
        900 << 20,
        4096,
    ]


def test_device_and_axis_are_told_as_poan_run_is(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["a", "b", "participant"]
    assert parser().parse_args([*command, "--device", "gpu:1"]).device == "cuda:1"
    assert parser().parse_args([*command, "--axis", "axial"]).axis == "axial"
    for option, value, told in [
        ("--device", "tpu", "expected auto, cpu, cuda or cuda:N, got tpu"),
        ("--axis", "oblique", "expected 0, 1, 2, sagittal, coronal or axial, got oblique"),
    ]:
        with pytest.raises(SystemExit) as exit:
            parser().parse_args([*command, option, value])
        assert exit.value.code == 2
        assert told in capsys.readouterr().err


@pytest.mark.parametrize("scale", sorted({model.name[-1] for model in shipped_models()}))
def test_every_scale_that_a_model_ships_for_can_be_asked_for(
    scale: str, make_dataset: Any, tmp_path: Path
) -> None:
    code, told, _ = run(
        make_dataset(), tmp_path / "out", "participant", "--dry-run", "--scale", scale
    )
    assert code == 0
    assert re.search(rf"to do with \w+_x{scale}: .*_res-{scale}x_", told)


def test_mistakes_are_one_line_and_status_2(make_dataset: Any, tmp_path: Path) -> None:
    dataset = make_dataset()
    for arguments, told in [
        ((tmp_path / "none", tmp_path / "out", "participant"), "expected a BIDS dataset"),
        ((dataset, dataset, "participant"), "among the raw data"),
        ((dataset, tmp_path / "out", "participant", "--model", "bold=x"), "--model: expected"),
        ((dataset, tmp_path / "out", "group"), "no scan was run into it"),
    ]:
        code, _, err = run(*arguments)
        assert code == 2
        assert told in err
        assert len(err.splitlines()) == 1


@pytest.mark.slow
def test_after_kill_9_the_same_command_finishes_with_the_same_bytes(
    make_dataset: Any, nearest_x2: Path, tmp_path: Path, repository: Path
) -> None:
    names = [f"sub-{i}/anat/sub-{i}_T2w.nii.gz" for i in range(12)]
    dataset, out, calm = make_dataset(names), tmp_path / "out", tmp_path / "calm"
    command = [sys.executable, "-m", "poan_runtime.commands.bids"]
    tail = ["participant", "--model", str(nearest_x2), "--n-procs", "2", "--backend", "onnxruntime"]
    environment = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        [*command, dataset, out, *tail], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert started.stdout is not None
    for _ in range(3):
        started.stdout.readline()
    workers = children_of(started.pid)
    started.send_signal(signal.SIGKILL)
    started.communicate()
    wait_until_gone(workers)
    (out / "sub-5/anat").mkdir(parents=True, exist_ok=True)
    left = out / "sub-5/anat/.sub-5_res-2x_desc-sr_T2w.nii.gz.0.poan-partial"
    left.touch()
    remains = out / "poan/records/.sub-5_T2w.json.0.poan-partial"
    remains.touch()
    (out / "sub-5/anat/sub-5_res-2x_desc-sr_T2w.json").unlink(missing_ok=True)
    again = subprocess.run([*command, dataset, out, *tail], env=environment, capture_output=True)
    assert again.returncode == 0
    subprocess.run([*command, dataset, calm, *tail], env=environment, check=True)

    def content(folder: Path) -> dict[str, bytes]:
        files = [
            path for path in folder.rglob("*") if path.is_file() and "records" not in path.parts
        ]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    assert not remains.exists()
    assert content(out) == content(calm)
    assert len(list(out.glob("sub-*/anat/*.nii.gz"))) == 12


def children_of(process: int) -> list[str]:
    """Numbers of the processes that a process has started."""
    return Path(f"/proc/{process}/task/{process}/children").read_text().split()


def wait_until_gone(processes: list[str]) -> None:
    """Until none of them is left: workers outlive no parent."""
    assert processes
    for _ in range(600):
        if not any(Path(f"/proc/{number}/cmdline").exists() for number in processes):
            return
        time.sleep(0.05)
    raise AssertionError("a worker outlived its parent")
