"""`poan-run` as it is typed."""

import itertools
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from poan_runtime import geometry
from poan_runtime.commands import run as cli


def poan_run(*arguments: object) -> int:
    try:
        return cli.main([str(argument) for argument in arguments])
    except SystemExit as left:  # the parser's way out
        return int(left.code or 0)


def repeated(data: np.ndarray, axes: Sequence[int] = (0, 1), scale: int = 2) -> np.ndarray:
    for axis in axes:
        data = data.repeat(scale, axis)
    return data


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.startswith("poan-run: ")
    assert error.count("\n") == 1
    return error


def test_sform_and_qform_are_each_refined_and_keep_their_code(
    nearest_x2: Path, make_scan: Any, tmp_path: Path
) -> None:
    scan = make_scan("scan.nii")
    image = nib.load(scan)
    turned = np.eye(4)
    turned[:2, :2] = [[0.6, -0.8], [0.8, 0.6]]
    image.set_qform(turned @ np.diag([0.9, 0.9, 4, 1]), code=1)
    image.set_sform(np.diag([-0.9, 0.9, 4, 1]), code=4)
    nib.save(image, tmp_path / "both.nii")
    assert poan_run(nearest_x2, tmp_path / "both.nii") == 0
    before = nib.load(tmp_path / "both.nii").header
    after = nib.load(tmp_path / "both_desc-sr.nii.gz").header
    assert (after["sform_code"], after["qform_code"]) == (4, 1)
    for name in ("get_sform", "get_qform"):
        expected = geometry.upscaled_affine(getattr(before, name)(), 2, 2, "centre")
        np.testing.assert_allclose(getattr(after, name)(), expected, atol=1e-6)
    np.testing.assert_allclose(after.get_zooms(), (0.45, 0.45, 4), rtol=1e-6)


def test_header_extension_description_and_time_step_are_kept(
    nearest_x2: Path, make_scan: Any, tmp_path: Path
) -> None:
    image = nib.load(make_scan("scan.nii", shape=(20, 18, 5, 2)))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"keep me"))
    image.header["descrip"] = b"scanner text"
    image.header["pixdim"][4] = 2.5
    image.header.set_xyzt_units("mm", "sec")
    scan = tmp_path / "ext.nii"
    nib.save(image, scan)
    assert poan_run(nearest_x2, scan) == 0
    after = nib.load(tmp_path / "ext_desc-sr.nii.gz").header
    assert after.extensions[0].get_content() == b"keep me"
    assert after["descrip"].item() == b"scanner text; poan tiny_x2"
    assert after.get_zooms()[3] == 2.5
    assert after.get_xyzt_units() == ("mm", "sec")


def test_a_scan_with_an_empty_description_is_told_who_made_it(
    nearest_x2: Path, make_scan: Any, tmp_path: Path
) -> None:
    assert poan_run(nearest_x2, make_scan()) == 0
    out = nib.load(tmp_path / "scan_desc-sr.nii.gz")
    assert out.header["descrip"].item() == b"poan tiny_x2"


@pytest.mark.parametrize("axis", ["0", "1", "2"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_any_slice_axis_gives_the_right_volume(
    axis: str, kind: Any, nearest_x2: Path, make_scan: Any, tmp_path: Path
) -> None:
    scan = make_scan(shape=(9, 20, 7, 2), dtype=">i4", kind=kind)
    assert poan_run(nearest_x2, scan, "--axis", axis, "--no-skip", "--batch", "3") == 0
    before, after = nib.load(scan), nib.load(tmp_path / "scan_desc-sr.nii.gz")
    in_plane = geometry.in_plane_axes(int(axis))
    assert np.array_equal(np.asarray(after.dataobj), repeated(np.asarray(before.dataobj), in_plane))
    np.testing.assert_allclose(
        after.affine, geometry.upscaled_affine(before.affine, 2, int(axis), "centre"), atol=1e-6
    )


@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 1), (2, 1, 3), (1, 40, 3), (3, 5, 1, 2, 2)])
def test_tiny_scans_work(
    shape: tuple[int, ...], nearest_x2: Path, make_scan: Any, tmp_path: Path
) -> None:
    scan = make_scan(shape=shape)
    assert poan_run(nearest_x2, scan, "--axis", "2") == 0
    out = np.asarray(nib.load(tmp_path / "scan_desc-sr.nii.gz").dataobj)
    assert np.array_equal(out, repeated(np.asarray(nib.load(scan).dataobj)))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_skipping_constant_tiles_changes_no_bit_of_the_file(
    backend: str, make_model: Any, make_scan: Any, tmp_path: Path
) -> None:
    pytest.importorskip(backend)
    data = np.random.default_rng(0).integers(0, 900, (50, 60, 3)).astype(np.float32)
    data[:, :30] = 0
    data[30:] = 7
    scan = make_scan("scan.nii", data=data, dtype="<f4")
    model = make_model(smooth=True)
    options = ["--backend", backend, "--report", tmp_path / "report.json"]
    assert poan_run(model, scan, "-o", tmp_path / "skip.nii", *options) == 0
    tiles = json.loads((tmp_path / "report.json").read_text())["scans"][0]["tiles"]
    assert tiles["skipped"] > 0
    again = ["--no-skip", "--overwrite"]
    assert poan_run(model, scan, "-o", tmp_path / "all.nii", *options, *again) == 0
    assert (tmp_path / "skip.nii").read_bytes() == (tmp_path / "all.nii").read_bytes()


def test_volumes_of_a_series_run_as_they_would_alone(
    make_model: Any, make_scan: Any, tmp_path: Path
) -> None:
    data = np.random.default_rng(0).integers(0, 900, (20, 20, 3, 2)).astype(np.int16)
    data[..., 1] //= 7
    model = make_model(smooth=True)
    assert poan_run(model, make_scan("series.nii", data=data)) == 0
    assert poan_run(model, make_scan("alone.nii", data=data[..., 1])) == 0
    series = np.asarray(nib.load(tmp_path / "series_desc-sr.nii.gz").dataobj)
    alone = np.asarray(nib.load(tmp_path / "alone_desc-sr.nii.gz").dataobj)
    assert np.array_equal(series[..., 1], alone)


def test_real_values_of_another_type_are_rounded_and_saturate(
    nearest_x2: Path, make_scan: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ramp = np.arange(-50, 50, dtype=np.float32).reshape(10, 10, 1) * 10.4
    scan = make_scan(data=ramp, dtype="<f4")
    assert poan_run(nearest_x2, scan, "--dtype", "uint8") == 2
    assert "over 1% of the voxels do not fit into uint8 (0 to 255)" in one_line(capsys)
    assert [*tmp_path.iterdir()] == [scan]
    assert poan_run(nearest_x2, scan, "--dtype", "uint8", "--saturate") == 0
    out = nib.load(tmp_path / "scan_desc-sr.nii.gz")
    assert out.get_data_dtype() == np.uint8
    expected = repeated(np.clip(np.rint(ramp), 0, 255))
    assert np.array_equal(np.asarray(out.dataobj), expected)
    assert "voxels do not fit into uint8" in capsys.readouterr().err


@pytest.mark.parametrize(("dtype", "slope"), [("int32", 0.5), ("uint8", 1), ("float32", 1)])
def test_slope_and_intercept_stay_for_a_type_that_holds_the_inputs(
    dtype: str, slope: float, nearest_x2: Path, make_scan: Any, tmp_path: Path
) -> None:
    scan = tmp_path / "scaled.nii"
    image = nib.load(make_scan("scan.nii"))
    image.header.set_slope_inter(0.5, 10)
    nib.save(image, scan)
    assert poan_run(nearest_x2, scan, "--dtype", dtype) == 0
    out = nib.load(tmp_path / "scaled_desc-sr.nii.gz")
    assert (out.dataobj.slope, out.dataobj.inter) == (slope, 10 if slope == 0.5 else 0)
    values = repeated(np.asarray(nib.load(scan).dataobj))
    # Values below 60 pass through up to 8 float32 roundings; whole numbers are half a unit off.
    tolerance = 3e-5 + (0.5 if dtype == "uint8" else 0)
    np.testing.assert_allclose(np.asarray(out.dataobj), values, rtol=0, atol=tolerance)


def test_several_scans_go_into_a_folder_and_a_bad_one_stops_no_other(
    nearest_x2: Path, make_scan: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = [make_scan("a.nii"), tmp_path / "missing.nii", make_scan("b.hdr", kind=nib.Nifti1Pair)]
    out = tmp_path / "out"
    report = tmp_path / "report.json"
    assert poan_run(nearest_x2, *scans, "-o", out, "--report", report, "--preview", out) == 2
    assert "missing.nii: no such file" in one_line(capsys)
    names = ["a_desc-sr.nii.gz", "a_desc-sr.png", "b_desc-sr.nii.gz", "b_desc-sr.png"]
    assert sorted(path.name for path in out.iterdir()) == names
    parts = json.loads(report.read_text())["scans"]
    assert [part["error"] for part in parts if "error" in part] == [
        f"{scans[1]}: no such file or folder"
    ]
    assert [Path(part["output"]["path"]) for part in parts if "output" in part] == [
        out / "a_desc-sr.nii.gz",
        out / "b_desc-sr.nii.gz",
    ]


def test_a_report_of_another_ending_is_refused_before_anything_runs(
    nearest_x2: Path, make_scan: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, report = tmp_path / "o.nii", tmp_path / "report.txt"
    assert poan_run(nearest_x2, make_scan(), "-o", out, "--report", report) == 2
    assert "report.txt: expected a name that ends in .json" in capsys.readouterr().err
    assert not out.exists()


def test_report_and_preview_tell_what_was_done(
    nearest_x2: Path, make_scan: Any, tmp_path: Path
) -> None:
    scan = make_scan(data=np.array([[[np.nan], [1.0]], [[2.0], [3.0]]], np.float32), dtype="<f4")
    report, preview = tmp_path / "r.json", tmp_path / "p.png"
    assert poan_run(nearest_x2, scan, "--report", report, "--preview", preview) == 0
    document = json.loads(report.read_text())
    (part,) = document["scans"]
    assert part["warnings"] == ["1 voxels are not finite; taken as 0"]
    assert part["intensity_scales"] == [3.0]
    assert re.fullmatch("[0-9a-f]{64}", part["input"]["sha256"]["scan.nii.gz"])
    assert document["model"]["sha256"] in (nearest_x2 / "manifest.json").read_text()
    stages = {"load_model", "open_and_unpack", "intensity", "read", "tile", "inference"}
    assert stages | {"blend", "measured", "write", "scan_total"} == set(part["seconds"])
    assert all(seconds >= 0 for seconds in part["seconds"].values())
    assert document["backend"]["reason"]
    picture = Image.open(preview)
    assert picture.width == 4 * 420 + 3 * 6
    levels = np.asarray(picture)[30:420]
    assert levels.min() == 0
    assert levels.max() == 255


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{model}", "{scan}", "-o", "{scan}"], "would replace an input"),
        (["{model}", "{scan}", "--report", "{scan}"], "would replace an input"),
        (["--explain", "{model}", "{scan}", "--report", "{scan}"], "would replace an input"),
        (["{model}", "{scan}", "-o", "a.nii", "--report", "a.nii"], "two results would be written"),
        (["{model}", "{scan}", "--report", "{tmp}"], "this is a folder"),
        (["{model}", "{scan}", "--scale", "3"], "expected --trust with them"),
        (["{model}", "{scan}", "-o", "{tmp}/nowhere/out.nii"], "there is no folder"),
        (["{model}", "{scan}", "-o", "{tmp}/out.mgz"], "expected a name that ends in .nii"),
        (["{model}", "{scan}", "--preview", "p.jpg"], "ends in .png"),
        (["{model}", "{scan}", "{scan}", "-o", "{tmp}/o"], "two results would be written to it"),
        (["{model}", "{scan}", "--axis", "up"], "slice axis: expected 0, 1, 2"),
        (["{model}", "{scan}", "--dtype", "int12"], "--dtype: expected one of uint8"),
        (["{model}", "{scan}", "--batch", "33"], "--batch: this model takes 1 to 32"),
        (["{model}", "{scan}", "--overlap", "14"], "below the tile of 16"),
        (["{model}", "{scan}", "--backend", "abacus"], "--backend: expected auto or one of"),
        (["{model}", "{scan}", "--backend", "openvino", "--device", "cuda"], "--device: openvino"),
        (["{tmp}/nothing", "{scan}"], "no such file or folder"),
        (["nothing", "{scan}"], "nor a shipped model (auto, auto_x2, auto_x3, auto_x4, mr_x2"),
        (["flair_x2", "{scan}"], "t2_x4); mr_x2 is for every contrast"),
        (["auto_x5", "{scan}"], "t2_x4); there is none for x5"),
        (["{scan}", "mr_x2"], "mr_x2: the model comes first, the scans after it"),
        (["{scan}", "auto", "--explain"], "auto: the model comes first, the scans after it"),
        (["net.pt", "{scan}"], "net.pt: no such file or folder"),
        (["{tmp}/empty", "{scan}"], "empty: no manifest.json: not a folder that poan-export wrote"),
        (["{model}/manifest.txt", "{scan}"], "no such file or folder"),
        (["{model}", "{scan}", "{scan}", "-o", "{tmp}/o.nii"], "one file for several scans"),
        (["{model}", "{tmp}/empty"], "neither a NIfTI file nor DICOM"),
        (["--list", "t2_x2"], "--list: expected no argument"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_writes_nothing(
    arguments: list[str],
    message: str,
    nearest_x2: Path,
    make_scan: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scan = make_scan()
    (tmp_path / "empty").mkdir()
    before = scan.read_bytes()
    places = {"model": nearest_x2, "scan": scan, "tmp": tmp_path}
    assert poan_run(*[argument.format(**places) for argument in arguments]) == 2
    assert message in one_line(capsys)
    assert set(tmp_path.iterdir()) == {scan, tmp_path / "empty"}
    assert scan.read_bytes() == before


def test_a_model_that_its_manifest_does_not_vouch_for_is_refused(
    make_model: Any, make_scan: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model, scan = make_model(), make_scan()
    bare = model / "bare"
    bare.mkdir()
    graph = bare / "model.onnx"
    graph.write_bytes((model / "model.onnx").read_bytes())
    assert poan_run(graph, scan) == 2
    assert "--trust --scale S --tile T" in one_line(capsys)
    assert poan_run(graph, scan, "--trust", "--scale", "2") == 2
    assert "--scale and --tile" in one_line(capsys)
    assert poan_run(graph, scan, "--trust", "--scale", "2", "--tile", "20") == 2
    assert "expected input shape (N, 1, 20, 20)" in one_line(capsys)
    assert poan_run(graph, scan, "--trust", "--scale", "2", "--tile", "16") == 0
    assert "nothing vouches for it" in one_line(capsys)
    (scan.parent / "scan_desc-sr.nii.gz").unlink()

    (model / "other.onnx").write_bytes(b"")
    assert poan_run(model / "other.onnx", scan) == 2
    assert "a file that the manifest lists (model.onnx)" in one_line(capsys)
    (bare / "own.pt").write_bytes(b"")
    assert poan_run(bare / "own.pt", scan) == 2
    assert "a checkpoint; poan-export --ckpt" in one_line(capsys)
    (model / "model.onnx").write_bytes(graph.read_bytes() + b"\0")
    for name in (model, model / "model.onnx", model / "manifest.json"):
        assert poan_run(name, scan) == 2
        assert "expected sha256" in one_line(capsys)
    (model / "model.onnx").unlink()
    assert poan_run(model, scan) == 2
    assert "no such file" in one_line(capsys)


def test_a_failed_verdict_is_refused_and_a_pending_one_is_told(
    make_model: Any, make_scan: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = make_scan()
    assert poan_run(make_model(parity={"verdict": "fail", "checks": []}), scan) == 2
    assert "parity verdict is fail" in one_line(capsys)
    assert poan_run(make_model(parity={"verdict": "pending", "checks": []}), scan) == 0
    assert "parity pending" in one_line(capsys)


def test_a_graph_that_is_no_graph_is_one_line(
    make_scan: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = make_scan()
    for content, backend in itertools.product((b"junk", b""), ("onnxruntime", "openvino")):
        pytest.importorskip(backend)
        (tmp_path / "junk.onnx").write_bytes(content)
        trust = ["--trust", "--scale", "2", "--tile", "16", "--backend", backend]
        assert poan_run(tmp_path / "junk.onnx", scan, *trust) == 2
        assert "cannot load it" in one_line(capsys)


def test_list_tells_what_each_shipped_model_is_for_and_worth(
    make_model: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = make_model(
        degradation={"method": "scanner"},
        gains={"truncated": 1.254, "bicubic": 0.5},
        data_licence="CC0",
    )
    folder = shutil.copytree(made, tmp_path / "models" / made.name)
    monkeypatch.setattr("poan_runtime.models.find.MODELS", folder.parent)
    assert poan_run("--list") == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [re.split("  +", line) for line in lines]
    (row,) = [row for row in rows if row[0] == folder.name]
    size = f"{(folder / 'model.onnx').stat().st_size / 2**20:.1f} MiB"
    assert row[1:] == ["T2", "x2", "scanner LR", "+0.50 to +1.25 dB", size]
    assert lines[-1] == f"licence of the data of {folder.name}: CC0"


def test_the_list_is_no_wider_than_a_page_and_says_the_other_names(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert poan_run("--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert "t2_x4: another name of mr_x4" in lines
    assert "auto, auto_x2, auto_x3, auto_x4: the model for the scan's contrast" in lines


def test_a_shipped_model_is_found_by_name(
    make_model: Any, make_scan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_model()
    monkeypatch.setattr("poan_runtime.models.find.MODELS", folder.parent)
    assert poan_run(folder.name, make_scan()) == 0


def test_no_scan_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert poan_run("model") == 2
    assert "expected a model and at least one scan" in capsys.readouterr().err
