"""The mix of acquisitions that is trained on: what is drawn, how often, from which range."""

from dataclasses import replace

import numpy as np
import pytest

from poan_train.acquire import (
    CHANCES,
    LIMITS,
    NOTHING,
    Acquisition,
    Scan,
    acquire,
    draw,
    response,
)


def test_every_part_of_the_mix_is_drawn_within_its_range_and_as_often_as_asked():
    config = Acquisition()
    scans = [draw(config, np.random.default_rng([0, i])) for i in range(4000)]
    rest = [s for s in scans if not s.bicubic]

    def share(seen, of):
        return pytest.approx(sum(map(bool, seen)) / len(of), abs=0.03)  # four sigma of 4,000

    assert config.bicubic == share([s.bicubic for s in scans], scans)
    assert config.filter == share([s.filter != "none" for s in rest], rest)
    for name in ("hamming", "tukey", "fermi"):
        assert config.filter / 3 == share([s.filter == name for s in rest], rest)
    assert config.noise == share([s.snr for s in rest], rest)
    assert config.partial == share([s.partial for s in rest], rest)
    assert config.corners == share([s.corners for s in rest], rest)
    assert config.elliptic == share([s.elliptic for s in rest], rest)
    assert config.rounding == share([s.levels for s in rest], rest)
    either = config.phase + config.interpolation - config.phase * config.interpolation
    assert either == share([s.band != (1, 1) for s in rest], rest)
    assert all(12 <= s.snr <= 100 for s in rest if s.snr)
    assert min(s.snr for s in rest if s.snr) < 12.5
    tukeys = [s.shape for s in rest if s.filter == "tukey"]
    assert all(0.3 <= a <= 0.9 and 0 <= b <= 0.5 for a, b in tukeys)
    fermis = [s.shape for s in rest if s.filter == "fermi"]
    assert all(0.75 <= a <= 0.98 and 0.02 <= b <= 0.12 for a, b in fermis)
    assert {s.partial for s in rest if s.partial} == {
        (axis, part) for axis in (0, 1) for part in (6 / 8, 7 / 8)
    }
    assert all(0.3 <= min(s.band) <= max(s.band) <= 1 for s in rest)


def test_either_axis_may_have_fewer_lines_and_snr_and_levels_are_even_in_their_logarithm():
    config = replace(NOTHING, phase=1.0, noise=1.0, rounding=1.0)
    scans = [draw(config, np.random.default_rng([1, i])) for i in range(1000)]
    rows = np.mean([s.band[1] == 1 and s.band[0] < 1 for s in scans])
    columns = np.mean([s.band[0] == 1 and s.band[1] < 1 for s in scans])
    assert rows == pytest.approx(0.5, abs=0.065)  # four sigma of 1,000
    assert rows + columns == 1
    for values, limits in (
        ([s.snr for s in scans], config.snr),
        ([s.levels for s in scans], config.levels),
    ):
        low, high = np.log(limits)
        shares = (np.log(values) - low) / (high - low)
        assert np.mean(shares) == pytest.approx(0.5, abs=0.037)  # four sigma, 0.289 each


def test_the_scanners_interpolation_is_of_both_axes_and_within_its_range():
    config = replace(NOTHING, interpolation=1.0)
    bands = np.array([draw(config, np.random.default_rng([2, i])).band for i in range(400)])
    assert np.array_equal(bands[:, 0], bands[:, 1])
    factors = 1 / bands[:, 0]
    # the ends of 400 even draws: within 3 % of the range but for one case in 200,000
    assert (factors.min(), factors.max()) == (
        pytest.approx(1.2, abs=0.025),
        pytest.approx(2.0, abs=0.025),
    )
    assert ((factors >= 1.2) & (factors <= 2)).all()


@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize("name", sorted(set(LIMITS) - set(CHANCES)))
def test_at_either_end_of_every_range_a_scan_measures_the_middle_of_k_space(name, end):
    certain = dict.fromkeys(set(CHANCES) - {"bicubic"}, 1.0)
    limits = LIMITS[name][end], LIMITS[name][end]
    config = Acquisition(**{**certain, "bicubic": 0.0, name: limits})
    for i in range(12):  # each filter, along either axis
        rng = np.random.default_rng(i)
        scan = draw(config, rng)
        assert 0 < min(scan.band) <= max(scan.band) <= 1
        assert response(scan, (32, 36))[0, 0] > 0.1
        assert np.isfinite(acquire(np.ones((32, 36)), scan, 1.0, rng)).all()


def test_truncated_draws_nothing_but_truncation():
    assert {draw(NOTHING, np.random.default_rng(i)) for i in range(50)} == {Scan()}
