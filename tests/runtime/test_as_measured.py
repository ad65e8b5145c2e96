"""Zero-filled scans from their native matrix; the measured band compared, and put back."""

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import poan_runtime
from poan_runtime import geometry
from poan_runtime.as_measured import (
    NativeSource,
    cut_across_frames,
    decided,
    header_disagrees,
    measured_of,
    slices_across,
)
from poan_runtime.commands.run import main
from poan_runtime.errors import PoanError
from poan_runtime.images.formats import open_source
from poan_runtime.images.source import ArraySink, ArraySource
from poan_runtime.network import SPEED_ALONE
from poan_runtime.signal.kspace import not_below_zero, to_native
from poan_runtime.signal.measured import difference, down
from tests.runtime.filled import AFFINE, FILLED, NATIVE, SCANNER, SLICES, settings
from tests.runtime.images.conformance import check_source


def test_a_native_source_is_a_source_of_the_cropped_slices(filled: np.ndarray) -> None:
    volumes = filled, np.abs(filled - 500)  # the second rings below zero when it is cropped
    stored = ArraySource(np.stack(volumes, axis=3), AFFINE)
    native = measured_of(stored, 2).native
    assert native.native == NATIVE
    cropped = [not_below_zero(to_native(np.moveaxis(v, 2, 0), NATIVE), v) for v in volumes]
    source = NativeSource(stored, 2, native)
    check_source(source, np.moveaxis(np.stack(cropped, axis=3), 0, 2))
    # The field of view stays: corners in mm; float64 rounding of sums of tens.
    expected = geometry.corners(AFFINE, filled.shape)
    np.testing.assert_allclose(geometry.corners(source.affine, source.shape), expected, atol=1e-9)


def test_a_native_source_says_of_the_scan_what_the_scan_says(filled_scan: Path) -> None:
    with contextlib.closing(open_source(filled_scan)) as stored:
        source = NativeSource(stored, 2, measured_of(stored, 2).native)
        stored.warnings = ("odd but harmless",)  # type: ignore[misc]
        for name in ("path", "dtype", "warnings"):
            assert getattr(source, name) == getattr(stored, name)
        assert source.path == filled_scan
        assert list(source.sha256()) == ["scan.nii"]
        assert source.sha256() == stored.sha256()


def test_the_noise_is_that_of_the_native_matrix(filled: np.ndarray) -> None:
    """Noise of 20 in each voxel that was measured; two thirds of it where it was filled."""
    found = measured_of(ArraySource(filled, AFFINE), 2)
    # the median over some 120 coefficients in each of three slices: 6 % by chance
    assert found.noise.sigma == pytest.approx(20, rel=0.2)


def test_a_scan_of_any_magnitude_gives_the_same_in_its_own_unit(
    scanner_model: Path, filled: np.ndarray
) -> None:
    """Values whose squares are beyond float32: units of two, so that no digit is lost."""
    results = []
    for unit in (1.0, 2.0**100):
        sink, maps = ArraySink(), []
        outcome = poan_runtime.upscale_file(
            ArraySource(filled * np.float32(unit), AFFINE),
            sink,
            scanner_model,
            settings(like_input=True, keep_measured=0.5),
            consumers=[lambda _, pair, maps=maps: maps.append(pair.changed)],
        )
        assert outcome.native_used
        assert outcome.measured is not None
        assert outcome.change is not None
        results.append(
            (
                sink.data / unit,
                np.concatenate(maps) / unit,
                outcome.change.relative,
                outcome.measured.noise.sigma / unit,
            )
        )
    for plain, large in zip(*results, strict=True):
        np.testing.assert_allclose(large, plain, rtol=1e-5, atol=1e-3)  # float32 of 500


def test_a_model_for_scanners_starts_from_the_native_matrix(
    scanner_model: Path, filled_scan: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.nii"
    outcome = poan_runtime.upscale_file(filled_scan, out, scanner_model, settings(native="on"))
    assert outcome.native_used
    assert outcome.geometry.fine_shape == (128, 160, SLICES)
    fine = nib.load(out)
    assert fine.shape == (128, 160, SLICES)
    # Headers hold float32: 1e-5 mm at tens of mm. The issue asks for 1e-3.
    np.testing.assert_allclose(
        geometry.corners(fine.affine, fine.shape), geometry.corners(AFFINE, (*FILLED, SLICES)),
        atol=2e-5,
    )  # fmt: skip
    stored = np.asarray(nib.load(filled_scan).dataobj)
    native = to_native(np.moveaxis(stored, 2, 0), NATIVE)
    repeated = np.moveaxis(native.repeat(2, 1).repeat(2, 2), 0, 2)
    # The network repeats voxels; float32 rounding of 500 through a division and a product.
    np.testing.assert_allclose(np.asarray(fine.dataobj), repeated, rtol=0, atol=5e-4)


@pytest.mark.parametrize(
    ("trained_on", "asked", "rows"),
    [
        ("bicubic", "auto", 192),
        ("bicubic", "on", 128),
        ("scanner", "off", 192),
        ("truncated", "auto", 128),
    ],
)
def test_the_matrix_stays_for_a_model_of_bicubic_lr_and_where_told(
    make_model: Callable[..., Path], filled_scan: Path, trained_on: str, asked: Any, rows: int
) -> None:
    model = make_model(degradation={"method": trained_on})
    assert poan_runtime.upscale(filled_scan, model, settings(native=asked)).data.shape[0] == rows


def test_the_slice_axis_is_that_of_the_scan_though_native_voxels_are_longest_in_the_plane(
    scanner_model: Path, filled: np.ndarray
) -> None:
    """Cropped to 64 of 96 rows, voxels of 0.9 mm become 1.35 mm, and slices lie 1 mm apart."""
    source, sink = ArraySource(filled, np.diag([0.9, 0.9, 1.0, 1.0])), ArraySink()
    outcome = poan_runtime.upscale_file(source, sink, scanner_model)
    assert outcome.native_used
    assert (outcome.geometry.axis, sink.data.shape) == (2, (128, 160, 5))


def test_a_full_spectrum_and_a_model_on_the_kspace_grid_are_left_alone(
    make_model: Callable[..., Path], filled_scan: Path, make_scan: Callable[..., Path]
) -> None:
    full = make_scan("full.nii", shape=(64, 64, 3), dtype="<f4")
    model = make_model(degradation=SCANNER)
    outcome = poan_runtime.upscale_file(full, ArraySink(), model)
    assert outcome.geometry.fine_shape == (128, 128, 3)
    assert not outcome.native_used
    kspace = make_model(grid="kspace", degradation=SCANNER)
    assert poan_runtime.upscale(filled_scan, kspace, settings(native="on")).data.shape[0] == 192


@pytest.mark.parametrize(
    ("stated", "used", "said"),
    [
        ((64, 80, 5), (64, 80), False),
        ((66, 79, 5), (66, 80), False),  # 2 % of 96; 1 % of 80 is as good as all
        ((64, 100, 5), (64, 80), False),  # no more than all of it can be seen
        ((62, 74, 5), (62, 74), False),  # 0.93 of 80: beyond where the spectrum is looked at
        ((68, 80, 5), (64, 80), True),
        ((64, 68, 5), (64, 80), True),  # 0.85 of 80: there the spectrum shows no end
        ((96, 80, 5), (64, 80), True),
    ],
)
def test_a_header_is_used_where_the_spectrum_agrees_and_else_is_one_warning(
    scanner_model: Path,
    filled: np.ndarray,
    stated: tuple[int, int, int],
    used: tuple[int, int],
    said: bool,
) -> None:
    source = ArraySource(filled, AFFINE)
    source.native_shape = stated  # type: ignore[attr-defined]
    with poan_runtime.load_network(scanner_model) as network:
        outcome = poan_runtime.upscale_file(source, ArraySink(), network, settings())
    line = (
        f"the header says that {stated[0]}x{stated[1]} of 96x80 lines were acquired, by the "
        "spectrum it is 64x80, which is used"
    )
    assert outcome.warnings == ((line,) if said else ())
    assert outcome.geometry.shape == (*used, SLICES)
    # The field of view stays: corners in mm; float64 rounding of sums of tens.
    lies = outcome.geometry
    expected = geometry.corners(AFFINE, filled.shape)
    np.testing.assert_allclose(geometry.corners(lies.affine, lies.shape), expected, atol=1e-9)


@pytest.mark.parametrize(("stated", "used"), [((20, 24, 4), (20, 24)), ((5, 24, 4), (32, 24))])
def test_where_the_spectrum_cannot_tell_the_header_does_within_reason(
    stated: tuple[int, int, int], used: tuple[int, int]
) -> None:
    data = np.random.default_rng(6).uniform(100, 900, (32, 40, 4)).astype(np.float32)
    source = ArraySource(data, np.diag([1.0, 1.0, 5.0, 1.0]))
    assert measured_of(source, 2).native.native == (32, 40)
    source.native_shape = stated  # type: ignore[attr-defined]
    found = measured_of(source, 2).native
    assert found.native == used
    assert found.cutoffs[1] == 24 / 40
    assert str(found).endswith("columns: 24 of 40 acquired, says the header)")
    assert header_disagrees(source, 2, found) == ()
    source.native_shape = None  # type: ignore[attr-defined]
    assert measured_of(source, 2).native.native == (32, 40)


def test_slices_across_another_axis_than_a_2d_acquisitions_are_one_remark() -> None:
    source = ArraySource(np.zeros((8, 8, 8)), np.eye(4))
    assert cut_across_frames(source, 1) == ()
    for across, said in ((None, 0), (1, 0), (2, 1)):
        source.frame_axis = across  # type: ignore[attr-defined]
        assert len(cut_across_frames(source, 1)) == said


def test_slices_are_the_scanners_own_where_it_acquired_in_2d_and_else_the_thick_ones(
    nearest_x2: Path,
) -> None:
    """Voxels of 3.4 x 3.4 x 2.4 mm: the slices of this 2D acquisition are thinner than wide."""
    source = ArraySource(np.zeros((8, 8, 6), np.float32), np.diag([3.4, 3.4, 2.4, 1.0]))
    assert (slices_across(source, None), slices_across(source, 1)) == (0, 1)
    source.frame_axis = 2  # type: ignore[attr-defined]
    assert (slices_across(source, None), slices_across(source, 1)) == (2, 1)
    outcome = poan_runtime.upscale_file(source, ArraySink(), nearest_x2)
    assert (outcome.geometry.axis, outcome.geometry.fine_shape) == (2, (16, 16, 6))
    assert outcome.warnings == ()
    asked = poan_runtime.Settings(axis=0)
    outcome = poan_runtime.upscale_file(source, ArraySink(), nearest_x2, asked)
    assert "across axis 0, as was asked for" in outcome.warnings[0]


def test_of_real_series_header_and_spectrum_give_the_acquired_matrix(shared_data: Path) -> None:
    """70 of 96 lines by both; 256 of 288 by the header, too far out to be seen; 190 seen of 205."""
    dicom = shared_data / "dicom"
    for name, native in (
        ("philips_pcasl_classic", (76, 70)),
        ("philips_brainix_flair", (190, 256)),
    ):
        with contextlib.closing(open_source(dicom / name)) as source:
            found = measured_of(source, 2).native
            assert found.native == native
            (line,) = header_disagrees(source, 2, found)
        assert f"by the spectrum it is {native[0]}x{native[1]}, which is used" in line


def test_the_measured_band_is_put_back(scanner_model: Path, filled_scan: Path) -> None:
    kept = poan_runtime.upscale(filled_scan, scanner_model, settings(keep_measured="on")).data
    free = poan_runtime.upscale(filled_scan, scanner_model, settings(keep_measured="off")).data
    lr = to_native(np.moveaxis(np.asarray(nib.load(filled_scan).dataobj), 2, 0), NATIVE)
    # Float32 through two resamplings of values of 500: 1e-6 of them, with room for sums of 128.
    np.testing.assert_allclose(down(np.moveaxis(kept, 2, 0), 2), lr, rtol=0, atol=5e-3)
    assert np.abs(down(np.moveaxis(free, 2, 0), 2) - lr).max() > 1


def test_voxels_that_are_not_finite_are_put_back_as_zero(
    scanner_model: Path, filled: np.ndarray
) -> None:
    spoilt = filled.copy()
    spoilt[40:43, 30:34, 4] = np.nan
    zeros = np.nan_to_num(spoilt)
    results = []
    for data in (spoilt, zeros):
        sink = ArraySink()
        wanted = settings(keep_measured="on", native="off")
        outcome = poan_runtime.upscale_file(ArraySource(data, AFFINE), sink, scanner_model, wanted)
        assert outcome.change is not None
        results.append((sink.data, outcome.change.relative))
    assert np.array_equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def test_a_share_of_the_measured_band_is_put_back(scanner_model: Path, filled_scan: Path) -> None:
    off, tenth, on = (
        poan_runtime.upscale(filled_scan, scanner_model, settings(keep_measured=share)).data
        for share in ("off", 0.1, "on")
    )
    # float32 of values of 500
    np.testing.assert_allclose(tenth, off + 0.1 * (on - off), rtol=0, atol=1e-3)
    assert np.abs(tenth - off).max() > 0.1


@pytest.mark.parametrize("share", [1.5, -0.1, "perhaps", float("nan")])
def test_a_share_that_is_none_is_one_line(
    scanner_model: Path, filled_scan: Path, share: Any
) -> None:
    with pytest.raises(PoanError, match="auto, on, off or a share from 0 to 1"):
        poan_runtime.upscale(filled_scan, scanner_model, settings(keep_measured=share))


@pytest.mark.parametrize(
    ("wish", "kept", "said"),
    [
        ("on", 1.0, "of what was measured, which was put back"),
        ("off", 0.0, "of what was measured"),
        (None, 0.0, "of what was measured"),
        (0.1, 0.1, "of what was measured, 10% of which was put back"),
    ],
)
def test_auto_keeps_the_band_where_the_manifest_says_so(
    make_model: Callable[..., Path],
    filled_scan: Path,
    tmp_path: Path,
    wish: str | float | None,
    kept: float,
    said: str,
) -> None:
    model = make_model(degradation=SCANNER, **({"keep_measured": wish} if wish else {}))
    outcome = poan_runtime.upscale_file(filled_scan, tmp_path / "out.nii", model, settings())
    assert outcome.measured_kept == kept
    assert outcome.faithfulness is not None
    assert outcome.faithfulness.partition(";")[0].endswith(said)


def test_the_settings_that_a_record_names_hold_what_the_manifest_decides(
    make_model: Callable[..., Path],
) -> None:
    with poan_runtime.load_network(make_model(keep_measured=0.1, air_k=3.0)) as network:
        manifest = network.model.manifest
    meant = dataclasses.asdict(settings(keep_measured=0.1))
    deciding = {name: value for name, value in meant.items() if name not in SPEED_ALONE}
    assert decided(manifest, settings()) == deciding | {"air_k": 3.0}
    assert decided(manifest, settings(skip=False))["air_k"] is None


def test_the_figure_of_faithfulness_is_that_of_the_voxels(
    scanner_model: Path,
    filled_scan: Path,
    filled: np.ndarray,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, report, changed = (tmp_path / name for name in ("out.nii", "r.json", "changed.nii"))
    options = ["-o", str(out), "--report", str(report), "--changed-map", str(changed)]
    assert main([str(scanner_model), str(filled_scan), *options, "--axis", "2"]) == 0
    lr = to_native(np.moveaxis(np.asarray(nib.load(filled_scan).dataobj), 2, 0), NATIVE)
    sr = np.moveaxis(np.asarray(nib.load(out).dataobj), 2, 0)
    expected = difference(lr, sr, 2)
    relative = np.linalg.norm(expected) / np.linalg.norm(lr)
    part = json.loads(report.read_text())["scans"][0]
    # The output is float32: the same figures up to its rounding.
    assert part["faithfulness"]["changed_relative"] == pytest.approx(relative, rel=1e-4)
    found = part["faithfulness"]
    assert found["changed_rms"] == pytest.approx(np.sqrt((expected**2).mean()), rel=1e-4)
    assert found["noise_from"] == "spectrum"
    assert found["noise_sigma"] == measured_of(ArraySource(filled, AFFINE), 2).noise.sigma
    assert part["native"]["native"] == list(NATIVE)
    assert part["native"]["cutoffs"] == [pytest.approx(64 / 96, abs=0.02), None]
    where = np.moveaxis(np.asarray(nib.load(changed).dataobj), 2, 0)
    np.testing.assert_allclose(where, expected, rtol=0, atol=1e-3)
    said = capsys.readouterr().out
    noise = found["noise_sigma"] / np.sqrt((lr**2).mean())
    line = f"the network changed {relative:.2%} of what was measured; "
    line += f"the scan's noise is {noise:.2%} of its signal"
    assert line in said
    again = ["-o", str(tmp_path / "kept.nii"), "--report", str(report), "--keep-measured", "on"]
    assert main([str(scanner_model), str(filled_scan), *again, "--axis", "2", "--overwrite"]) == 0
    assert json.loads(report.read_text())["scans"][0]["faithfulness"]["measured_kept"] == 1
    assert "native 64x80 (rows: zero-filled beyond 0.67 of Nyquist; columns: full)" in said


def test_no_figure_is_given_where_no_rule_tells(
    make_model: Callable[..., Path],
    filled_scan: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    report, changed = tmp_path / "r.json", tmp_path / "changed.nii"
    model = str(make_model(grid="kspace"))
    assert (
        main([model, str(filled_scan), "-o", str(tmp_path / "o.nii"), "--report", str(report)]) == 0
    )
    part = json.loads(report.read_text())["scans"][0]
    assert {"faithfulness", "native"}.isdisjoint(part)
    assert "what was measured" not in capsys.readouterr().out
    options = ["-o", str(tmp_path / "p.nii"), "--changed-map", str(changed)]
    assert main([model, str(filled_scan), *options]) == 2
    assert not changed.exists()
