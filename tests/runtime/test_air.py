"""Air of whole scans: up to where voxels count as air, and what poan-run says of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import poan_runtime
from poan_runtime.as_measured import FAINT, FAINT_MEAN, air_in, measured_of
from poan_runtime.both_matrices import BothMatrices
from poan_runtime.commands.run import main
from poan_runtime.images.source import ArraySink, ArraySource
from poan_runtime.models.manifest import parse_manifest
from poan_runtime.signal.noise import air_floor
from poan_runtime.super_resolve import Outcome, SuperResolution
from poan_runtime.tiles.air import NO_AIR, Air
from poan_runtime.tiles.run import count_air
from tests.runtime.signal.phantom import acquire, anatomy

SHAPE = (6, 96, 96)
K = 4.5


def scan_of(sigma: float) -> np.ndarray:
    """(96, 96, 6): a head of about 100 in air, with complex noise."""
    made = acquire(anatomy(SHAPE), SHAPE[1:], sigma=sigma)
    return np.moveaxis(made, 0, 2).astype(np.float32)


@pytest.fixture(scope="module")
def noisy() -> np.ndarray:
    return scan_of(sigma=2.0)


@pytest.fixture
def model(make_model: Callable[..., Path]) -> Path:
    return make_model(degradation={"method": "scanner"}, air_k=K)


def told(make_manifest: Callable[..., dict[str, Any]], air_k: float | None) -> Any:
    return parse_manifest(make_manifest("0" * 64) | ({} if air_k is None else {"air_k": air_k}))


def test_the_floor_is_that_of_the_noise_in_the_air(
    noisy: np.ndarray, make_manifest: Callable[..., dict[str, Any]]
) -> None:
    source = ArraySource(noisy, np.eye(4))
    found = measured_of(source, 2)
    assert found.noise.source == "background"
    air = air_in(source, 2, found, told(make_manifest, K), 0, 150.0)
    assert air == Air(air_floor(found.noise, K), FAINT_MEAN * found.noise.background_median)
    assert air.most == pytest.approx((1.18 + K) * 2.0, rel=0.05)
    assert air_in(source, 2, found, told(make_manifest, None), 0, 150.0) == NO_AIR


def test_where_air_holds_no_noise_a_share_of_the_unit_is_the_floor(
    make_manifest: Callable[..., dict[str, Any]],
) -> None:
    source = ArraySource(np.moveaxis(anatomy(SHAPE), 0, 2).astype(np.float32), np.eye(4))
    found = measured_of(source, 2)
    assert found.noise.background_sigma == 0
    assert air_in(source, 2, found, told(make_manifest, K), 0, 150.0) == Air(FAINT * 150.0)


def test_nothing_is_air_where_noise_hides_tissue(
    make_manifest: Callable[..., dict[str, Any]], model: Path
) -> None:
    """At an SNR of 10, and in a volume of noise alone."""
    noise_alone = np.hypot(*np.random.default_rng(3).normal(0, 5, (2, 96, 96, 6)))
    for scan in (scan_of(sigma=10.0), noise_alone.astype(np.float32)):
        source = ArraySource(scan, np.eye(4))
        found = measured_of(source, 2)
        assert found.noise.source == "background"
        unit = float(np.percentile(scan, 99.9))
        assert air_in(source, 2, found, told(make_manifest, K), 0, unit) == NO_AIR
        assert upscaled(scan, model)[1].timings.tiles_of_air == 0


def test_each_volume_has_the_floor_of_its_own_noise(
    noisy: np.ndarray, make_manifest: Callable[..., dict[str, Any]]
) -> None:
    source = ArraySource(np.stack([noisy, noisy / 100], axis=3), np.eye(4))
    found = measured_of(source, 2)
    first, second = (
        air_in(source, 2, found, told(make_manifest, K), volume, unit)
        for volume, unit in [(0, 150.0), (1, 1.5)]
    )
    assert second.most == pytest.approx(first.most / 100, rel=1e-5)


def upscaled(scan: np.ndarray, model: Path, **settings: Any) -> tuple[np.ndarray, Outcome]:
    sink = ArraySink()
    how = poan_runtime.Settings(axis=2, **settings)
    outcome = poan_runtime.upscale_file(ArraySource(scan, np.eye(4)), sink, model, how)
    return sink.data, outcome


def test_tissue_keeps_every_bit_and_air_nearly_its_values(noisy: np.ndarray, model: Path) -> None:
    skipped, outcome = upscaled(noisy, model, keep_measured="off")
    whole, _ = upscaled(noisy, model, keep_measured="off", skip=False)
    assert outcome.timings.tiles_of_air > 0
    bright = np.repeat(np.repeat(noisy > 30, 2, axis=0), 2, axis=1)
    assert 0.2 < bright.mean() < 0.6
    np.testing.assert_array_equal(skipped[bright], whole[bright])
    assert 0 < np.abs(skipped - whole).max() < 12  # two values of noise below the floor


def test_of_a_zero_filled_scan_air_is_left_out_on_either_matrix(model: Path) -> None:
    filled = acquire(anatomy(SHAPE), (144, 96), sigma=2.0)  # 96 of 144 rows measured
    source = ArraySource(np.moveaxis(filled, 0, 2).astype(np.float32), np.eye(4))
    with poan_runtime.load_network(model) as network:
        run = SuperResolution(source, network, poan_runtime.Settings(axis=2))
        assert isinstance(run.runner, BothMatrices)
        unit = run.intensity(0).unit
        both = run.runner.work(0, source.read_slices(2, 0, 6), unit, run.air(0, unit))
    assert min(count_air(work.tiles) for work in both) > 0


def test_where_the_spread_is_asked_for_every_tile_runs(noisy: np.ndarray, model: Path) -> None:
    _, outcome = upscaled(noisy, model, uncertainty=True)
    assert outcome.timings.tiles_of_air == 0


def test_poan_run_says_how_many_tiles_are_air_and_runs_them_where_told(
    make_scan: Callable[..., Path],
    noisy: np.ndarray,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scan = make_scan("scan.nii", dtype="<f4", affine=np.diag([1.0, 1, 5, 1]), data=noisy)
    counted = {}
    for name, more in [("air", []), ("all", ["--no-skip"])]:
        report = tmp_path / f"{name}.json"
        out = str(tmp_path / f"{name}.nii")
        assert main([str(model), str(scan), "-o", out, "--report", str(report), *more]) == 0
        counted[name] = json.loads(report.read_text())["scans"][0]
        assert ("skipped, all air" in capsys.readouterr().out) == (name == "air")
    air, every = counted["air"], counted["all"]
    assert air["tiles"]["of_air"] == air["tiles"]["skipped"] > 0 == every["tiles"]["skipped"]
    assert air["tiles"]["run"] + air["tiles"]["of_air"] == every["tiles"]["run"]
    assert air["plan"]["skip_tiles_of_air"]
    assert not every["plan"]["skip_tiles_of_air"]
    assert main([str(model), str(scan), "--explain"]) == 0
    assert f"{air['tiles']['run']} of {every['tiles']['run']} tiles" in capsys.readouterr().out
