"""A zero-filled scan on its native matrix and as it comes: shares, the mean, counts, the words."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import poan_runtime
from poan_runtime.as_measured import NativeSource
from poan_runtime.both_matrices import BothMatrices, native_share
from poan_runtime.commands.run import main
from poan_runtime.geometry import Geometry
from poan_runtime.images.source import ArraySink, ArraySource
from poan_runtime.signal.kspace import resample, to_native
from poan_runtime.signal.native import Native
from poan_runtime.super_resolve import SuperResolution
from poan_runtime.tiles import layout
from poan_runtime.tiles.air import NO_AIR
from poan_runtime.tiles.run import SliceRunner, Timings
from tests.runtime.filled import FILLED, NATIVE, SLICES

AFFINE = np.diag([0.6, 0.6, 4.0, 1.0])


@pytest.fixture(scope="module")
def model(make_model: Callable[..., Path]) -> Path:
    return make_model(degradation={"method": "scanner"}, smooth=True)


def run(
    data: np.ndarray, model: Path, **changes: object
) -> tuple[np.ndarray, poan_runtime.Outcome]:
    """SR (n, H, W), and what was done."""
    sink = ArraySink()
    wanted = poan_runtime.Settings(axis=2, **changes)  # type: ignore[arg-type]
    outcome = poan_runtime.upscale_file(ArraySource(data, AFFINE), sink, model, wanted)
    return np.moveaxis(sink.data, 2, 0), outcome


@pytest.mark.parametrize(
    ("cutoffs", "share"),
    [
        ((None, None), 1.0),
        ((0.45, None), 1.0),
        ((0.6, None), 0.7),
        ((0.75, 0.6), 0.7),
        ((None, 0.8), 0.5),
        ((0.88, 0.85), 0.5),
    ],
)
def test_the_farther_a_scan_was_filled_the_more_the_native_matrix_counts(
    cutoffs: tuple[float | None, float | None], share: float
) -> None:
    native = Native(matrix=(100, 100), native=(90, 90), cutoffs=cutoffs, reasons=("", ""))
    assert native_share(native) == pytest.approx(share)


def test_the_result_is_the_mean_of_both_answers_on_the_native_grid(
    model: Path, filled: np.ndarray
) -> None:
    sr, outcome = run(filled, model)
    native = np.moveaxis(to_native(np.moveaxis(filled, 2, 0), NATIVE), 0, 2)
    alone, _ = run(native, model, native="off")
    stored, _ = run(filled, model, native="off")
    measured = outcome.measured
    assert measured is not None
    share = native_share(measured.native)
    assert 0.5 < share < 0.7
    assert outcome.native_share == share
    expected = share * alone + (1 - share) * resample(stored, (128, 160))
    # The two intensity units differ, and float32 sums of 192 terms of 500.
    np.testing.assert_allclose(sr, expected, rtol=0, atol=5e-3)


def test_the_stored_matrix_is_seen_as_it_came_and_not_filled_again(
    model: Path, filled: np.ndarray
) -> None:
    """A scanner's magnitude folds up what rings below zero: cropped and filled, it is lost."""
    scan = np.abs(filled - 500)
    native = Native(matrix=FILLED, native=NATIVE, cutoffs=(0.667, None), reasons=("", ""))
    with poan_runtime.load_network(model) as network:
        source = NativeSource(ArraySource(scan, AFFINE), 2, native)
        wanted = poan_runtime.Settings(axis=2)
        layouts = (
            network.layout(Geometry.derive(each.shape, AFFINE, scale=2, grid="centre"), wanted)
            for each in (source, source.stored)
        )
        backend, timings = network.backend(wanted), Timings()
        runners = [
            SliceRunner(backend=backend, layout=each, skip=True, timings=timings)
            for each in layouts
        ]
        both = BothMatrices.of(runners[0], runners[1].layout, 0.6, source.to_native)
        stored = source.stored.read_slices(2, 0, 2)
        ((start, lr, fine),) = both.run_slabs(iter([both.work(0, stored, 1.0, NO_AIR)]))
        assert start == 0
        assert np.array_equal(lr, source.read_slices(2, 0, 2))
        answers = runners[0].run(lr, 1.0), resample(runners[1].run(stored, 1.0), (128, 160))
    expected = 0.6 * answers[0] + 0.4 * answers[1]
    np.testing.assert_allclose(fine[0], expected, rtol=0, atol=1e-4)  # float32 rounding of 60


def test_the_native_matrix_runs_alone_where_told(model: Path, filled: np.ndarray) -> None:
    sr, outcome = run(filled, model, native="on")
    native = np.moveaxis(to_native(np.moveaxis(filled, 2, 0), NATIVE), 0, 2)
    alone, _ = run(native, model, native="off")
    np.testing.assert_allclose(sr, alone, rtol=0, atol=1e-3)  # float32 rounding of 500
    assert outcome.native_share == 1


def test_slabs_hold_what_the_larger_matrix_allows_and_change_nothing(
    model: Path, filled: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, outcome = run(filled, model, uncertainty=True)
    assert outcome.layout.slab == SLICES
    monkeypatch.setattr(layout, "SLAB_BYTES", 4 * 2 * 192 * 160)  # two slices; three native ones
    parts, outcome = run(filled, model, uncertainty=True)
    assert outcome.layout.slab == 2
    assert np.array_equal(whole, parts)


def test_a_spread_is_not_below_zero(model: Path, filled: np.ndarray) -> None:
    with poan_runtime.load_network(model) as network:
        wanted = poan_runtime.Settings(axis=2, uncertainty=True)
        made = SuperResolution(ArraySource(filled, AFFINE), network, wanted)
        assert isinstance(made.runner, BothMatrices)
        fine = np.ones((2, 1, 128, 160), np.float32)
        wide = np.full((2, 1, 192, 160), -3, np.float32)
        fine[1] = 0
        mean = made.runner._mean(fine, wide)
    assert mean[0].mean() == pytest.approx(4 * made.runner.share - 3)  # a mean of images may be
    assert mean[0].max() < 0
    assert mean[1].min() == 0


def test_a_run_says_so_and_the_plan_counts_the_tiles_of_both(
    model: Path,
    filled: np.ndarray,
    make_scan: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    filled = filled * (np.arange(80) < 40)[:, None]  # and tiles of air, which run once
    scan = str(make_scan("scan.nii", dtype="<f4", affine=AFFINE, data=filled))
    named, plan, report = (
        [str(model), scan, "--axis", "2"],
        tmp_path / "p.json",
        tmp_path / "r.json",
    )
    assert main([*named, "--explain", "--report", str(plan)]) == 0
    (foreseen,) = json.loads(plan.read_text())["scans"]
    assert main([*named, "-o", str(tmp_path / "sr.nii"), "--report", str(report)]) == 0
    (ran,) = json.loads(report.read_text())["scans"]
    assert foreseen["tiles"]["to_run"] == ran["tiles"]["run"]
    assert foreseen["tiles"]["all"] == ran["tiles"]["run"] + ran["tiles"]["skipped"]
    assert ran["tiles"]["skipped"] > 0
    assert {"read", "tile", "inference", "blend", "measured"} <= set(ran["seconds"])
    assert foreseen["tiles"]["all"] > SLICES * foreseen["plan"]["tiles_per_slice"]
    share = ran["native"]["share"]
    native = ran["native"]["reasons"]
    said = (
        f"zero-filled by its scanner, native 64x80 (rows: {native[0]}; columns: {native[1]}); "
        f"the result is the mean of two runs: {share:.0%} from 64x80, {1 - share:.0%} from the "
        "stored matrix; --like-input gives 192x160\n"
    )
    out = capsys.readouterr().out
    assert f"matrix     {said}" in out
    assert f"scan.nii: {said}" in out


@pytest.mark.parametrize("native", ["auto", "on", "off"])
def test_voxels_that_are_not_finite_are_counted_on_either_matrix(
    model: Path, filled: np.ndarray, native: str
) -> None:
    spoilt = filled.copy()
    spoilt[40:43, 30:34, 4] = np.nan  # a slice that the search for the native matrix passes by
    found, outcome = run(spoilt, model, native=native)
    assert outcome.native_used is (native != "off")
    assert "12 voxels are not finite; taken as 0" in outcome.warnings
    assert np.isfinite(found).all()
