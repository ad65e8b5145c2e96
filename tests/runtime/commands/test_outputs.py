"""Where results go, what they may replace, and which scans are meant."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from poan_runtime.commands import run_scans
from poan_runtime.commands.run import main


def poan_run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_an_output_is_replaced_only_when_told_so(
    nearest_x2: Path, make_scan: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan, out = make_scan(), tmp_path / "out.nii"
    out.write_bytes(b"precious")
    assert poan_run(nearest_x2, scan, "-o", out) == 2
    assert "out.nii: there already; --overwrite replaces" in capsys.readouterr().err
    assert poan_run(nearest_x2, scan, "-o", out, "--skip-existing") == 0
    assert out.read_bytes() == b"precious"
    assert poan_run(nearest_x2, scan, "-o", out, "--overwrite") == 0
    assert nib.load(out).shape == (40, 36, 5)


def test_skip_existing_goes_on_with_the_scans_that_have_no_output(
    nearest_x2: Path, make_scan: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = [make_scan(name) for name in ("a.nii", "b.nii")]
    assert poan_run(nearest_x2, scans[0], "-o", f"{tmp_path}/out/") == 0
    first = (tmp_path / "out/a_desc-sr.nii.gz").stat().st_mtime_ns
    capsys.readouterr()
    assert poan_run(nearest_x2, *scans, "-o", tmp_path / "out", "--skip-existing") == 0
    assert "a_desc-sr.nii.gz: there already, skipped" in capsys.readouterr().out
    assert (tmp_path / "out/a_desc-sr.nii.gz").stat().st_mtime_ns == first
    assert (tmp_path / "out/b_desc-sr.nii.gz").is_file()
    again, report = ["-o", tmp_path / "out", "--skip-existing"], tmp_path / "report.json"
    assert poan_run(nearest_x2, *scans, *again, "--report", report) == 0
    assert f"{report}: nothing ran, so no report is written\n" in capsys.readouterr().out
    assert not report.exists()


def test_a_glob_that_matches_earlier_results_runs_the_scans_alone(
    nearest_x2: Path, make_scan: Any, tmp_path: Path
) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        make_scan(name)
    for again in ([], ["--overwrite"]):
        assert poan_run(nearest_x2, *sorted(tmp_path.glob("*.nii.gz")), *again) == 0
        names = ["a.nii.gz", "a_desc-sr.nii.gz", "b.nii.gz", "b_desc-sr.nii.gz"]
        assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_folder_stands_for_its_scans_without_earlier_results(
    nearest_x2: Path, make_scan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_scan("a.nii")
    make_scan("a_desc-sr.nii.gz")
    (tmp_path / "notes.txt").touch()
    monkeypatch.chdir(tmp_path)
    assert poan_run(nearest_x2, ".", "-o", "d/") == 0
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["a_desc-sr.nii.gz"]


@pytest.mark.parametrize("names", [["a.nii"], ["a.nii", "b.nii"]])
def test_of_a_folder_the_output_is_a_folder_however_many_scans_it_holds(
    nearest_x2: Path, make_scan: Any, tmp_path: Path, names: list[str]
) -> None:
    (tmp_path / "in").mkdir()
    for name in names:
        make_scan(name).rename(tmp_path / "in" / name)
    assert poan_run(nearest_x2, tmp_path / "in", "-o", tmp_path / "d") == 0
    made = sorted(path.name for path in (tmp_path / "d").iterdir())
    assert made == [name.replace(".nii", "_desc-sr.nii.gz") for name in names]


def test_of_a_folder_with_one_scan_the_output_may_be_a_file(
    nearest_x2: Path, make_scan: Any, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    make_scan("a.nii").rename(tmp_path / "in/a.nii")
    assert poan_run(nearest_x2, tmp_path / "in", "-o", tmp_path / "out.nii") == 0
    assert (tmp_path / "out.nii").is_file()


def test_scans_of_one_name_share_a_folder_below_their_own_folders_names(
    nearest_x2: Path, make_scan: Any, tmp_path: Path
) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        make_scan(f"{folder}/scan.nii")
    scans = [tmp_path / "one/scan.nii", tmp_path / "two/scan.nii", make_scan("other.nii")]
    assert poan_run(nearest_x2, *scans, "-o", tmp_path / "out") == 0
    found = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.gz"))
    names = ["one/scan_desc-sr.nii.gz", "other_desc-sr.nii.gz", "two/scan_desc-sr.nii.gz"]
    assert found == names


def test_a_bids_name_keeps_its_suffix_last(
    nearest_x2: Path, make_scan: Any, tmp_path: Path
) -> None:
    scan = make_scan("sub-01_ses-2_T2w.nii.gz")
    assert poan_run(nearest_x2, scan) == 0
    assert (tmp_path / "sub-01_ses-2_desc-sr_T2w.nii.gz").is_file()


def test_a_failed_scan_stands_in_the_report(
    nearest_x2: Path, make_scan: Any, tmp_path: Path
) -> None:
    (tmp_path / "bad.nii").write_bytes(b"no scan")
    report = tmp_path / "r.json"
    assert poan_run(nearest_x2, make_scan(), tmp_path / "bad.nii", "--report", report) == 2
    good, bad = json.loads(report.read_text())["scans"]
    assert good["output"]["shape"] == [40, 36, 5]
    assert bad["input"]["path"].endswith("bad.nii")
    assert "expected a NIfTI file" in bad["error"]


@pytest.mark.parametrize(
    "wrong",
    [
        ["missing.nii"],
        ["{scan}", "--dtype", "int12"],
        ["{scan}", "--axis", "up"],
        ["{scan}", "--halo", "-1"],
        ["{scan}", "--device", "abacus"],
        ["{scan}", "-o", "nowhere/out.nii"],
        ["{scan}", "--series", "3"],
        ["{scan}", "--burn-in"],
        [""],
        ["{scan}", "-o", ""],
    ],
)
def test_bad_arguments_are_noticed_before_the_model_is_loaded(
    wrong: list[str], make_scan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(run_scans, "load_network", load)
    scan = str(make_scan())
    try:
        code = poan_run("t2_x2", *[word.format(scan=scan) for word in wrong])
    except SystemExit as left:
        code = left.code  # type: ignore[assignment]
    assert code == 2


def test_gpu_is_another_word_for_cuda(
    nearest_x2: Path, make_scan: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = make_scan()
    for word in ("gpu", "gpu:0"):
        arguments = [nearest_x2, scan, "--backend", "openvino", "--device", word]
        assert poan_run(*arguments) == 2
        assert "openvino runs on cpu, not on cuda" in capsys.readouterr().err


def test_labels_are_refused_with_a_word_unless_told_otherwise(
    nearest_x2: Path, make_scan: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = (np.random.default_rng(0).random((20, 18, 5)) > 0.5).astype(np.uint8)
    scan = make_scan("head.nii", data=mask, dtype="u1")
    assert poan_run(nearest_x2, scan) == 2
    assert "looks like a label map (it holds only the values 0, 1)" in capsys.readouterr().err
    assert poan_run(nearest_x2, make_scan("sub-1_dseg.nii.gz")) == 2
    assert "looks like a label map (its name says so)" in capsys.readouterr().err
    image = nib.load(make_scan("grey.nii"))
    image.header.set_intent("label")
    nib.save(image, tmp_path / "parts.nii")
    assert poan_run(nearest_x2, tmp_path / "parts.nii") == 2
    assert "looks like a label map (its header says so)" in capsys.readouterr().err
    assert poan_run(nearest_x2, scan, "--labels") == 0
    assert (tmp_path / "head_desc-sr.nii.gz").is_file()


def test_a_contrast_other_than_the_models_is_a_warning(
    nearest_x2: Path, make_scan: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert poan_run(nearest_x2, make_scan("sub-1_T1w.nii")) == 0
    assert "looks like T1 by its name, the model was trained on T2" in capsys.readouterr().err
    assert poan_run(nearest_x2, make_scan("sub-1_T2w.nii")) == 0
    assert capsys.readouterr().err == ""


def test_auto_is_explained_as_it_would_run(
    make_scan: Any, nearest_x2: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(run_scans, "auto_model", lambda name, contrast: str(nearest_x2))
    scan = make_scan("sub-1_T2w.nii")
    assert poan_run("--explain", "auto", scan, "--threads", 1) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"sub-1_T2w.nii: contrast T2: model {nearest_x2}\n")
    assert "tiles" in said
