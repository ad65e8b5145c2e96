"""The self-ensemble: the mean and the spread of eight views."""

from typing import Any

import numpy as np
import pytest

from poan_runtime.engines.backend import Backend
from poan_runtime.engines.cores import TileByTile
from poan_runtime.tiles.ensemble import SelfEnsemble, Spread
from tests.runtime.engines.conformance import check_backend
from tests.runtime.tiles.test_run import Array, Blur, Repeat


class Lopsided(Backend):
    """Weighs rows and columns differently, so that each of the eight views answers otherwise."""

    def run(self, batch: Array) -> Array:
        height, width = batch.shape[2:]
        ramp = np.arange(height)[:, None] + 10 * np.arange(width)
        return (batch * ramp).astype(np.float32)


def eight_answers(batch: Array) -> list[Array]:
    """What `Lopsided` makes of each view of the batch, turned back."""
    views = []
    for turns in range(4):
        for flip in (False, True):
            view = np.rot90(batch, turns, (2, 3))
            view = view[..., ::-1] if flip else view
            out = Lopsided().run(view)
            out = out[..., ::-1] if flip else out
            views.append(np.rot90(out, -turns, (2, 3)))
    return views


def test_the_self_ensemble_is_the_mean_over_the_eight_views() -> None:
    batch = np.random.default_rng(0).normal(size=(2, 1, 5, 5)).astype(np.float32)
    views = eight_answers(batch)
    out = SelfEnsemble(Lopsided(), 1, "centre").run(batch)
    # Eight float32 terms of up to 100 summed in another order.
    np.testing.assert_allclose(out, np.mean(views, axis=0), rtol=0, atol=1e-4)
    assert np.abs(out - Lopsided().run(batch)).max() > 1


def test_the_spread_is_the_standard_deviation_of_the_eight_views() -> None:
    batch = np.random.default_rng(0).normal(size=(2, 1, 5, 5)).astype(np.float32)
    views = eight_answers(batch)
    out = SelfEnsemble(Lopsided(), 1, "centre", spread=True).run(batch)
    # Float32 squares of up to 1e4 summed in another order, then a root of about 10.
    np.testing.assert_allclose(out[:, 1:], np.std(views, axis=0), rtol=1e-4, atol=1e-4)
    assert np.array_equal(out[:, :1], SelfEnsemble(Lopsided(), 1, "centre").run(batch))


def test_a_small_spread_of_large_values_is_told() -> None:
    """The variance is that of the differences: of squares of 1e4, float32 would lose it."""

    class Nearly(Lopsided):
        def run(self, batch: Array) -> Array:
            height, width = batch.shape[2:]
            ramp = np.arange(height)[:, None] + np.zeros(width)
            return (batch + 0.25 * ramp).astype(np.float32)

    out = SelfEnsemble(Nearly(), 1, "centre", spread=True).run(np.full((1, 1, 3, 3), 1e4, "f4"))
    # The corner meets the ramp's ends 0 and 0.5 equally often; 1e4 in float32 has steps of 1e-3.
    assert out[0, 1, 0, 0] == pytest.approx(0.25, abs=2e-3)
    assert out[0, 1, 1, 1] == pytest.approx(0, abs=2e-3)


def test_mean_and_percentile_of_the_spread_are_those_of_its_tissue() -> None:
    rng = np.random.default_rng(0)
    sr = rng.uniform(0, 100, (3, 20, 30)).astype(np.float32)
    spread = rng.gamma(2.0, 3.0, sr.shape).astype(np.float32)
    found = Spread()
    for part in range(3):
        found.add(spread[part], sr[part], unit=100.0)
    inside = spread[sr > 5]  # 5 % of the unit
    assert found.mean == pytest.approx(inside.mean(), rel=1e-6)  # float32 values, float64 sums
    # a bin is 2.3 % wide
    assert found.percentile(95) == pytest.approx(np.percentile(inside, 95), rel=0.03)
    assert (Spread().mean, Spread().percentile(95)) == (0.0, 0.0)


@pytest.mark.parametrize("grid", ["centre", "kspace"])
def test_the_self_ensemble_keeps_the_contract_of_an_engine(grid: Any) -> None:
    check_backend(SelfEnsemble(Blur(2), 2, grid), tile=6, scale=2)


def test_the_self_ensemble_closes_its_engine_and_fills_batches_as_it_does() -> None:
    inner = TileByTile([Repeat(2).run])
    closed = []
    inner.close = lambda: closed.append(True)  # type: ignore[method-assign]
    ensemble = SelfEnsemble(inner, 2, "centre")
    assert not ensemble.fills_batches
    ensemble.close()
    assert closed == [True]


class Linear(Backend):
    """Linear interpolation at ``offset + j / scale``, extrapolated at the ends."""

    def __init__(self, scale: int, offset: float) -> None:
        self.scale = scale
        self.offset = offset

    def run(self, batch: Array) -> Array:
        for axis in (2, 3):
            size = batch.shape[axis]
            place = np.arange(size * self.scale) / self.scale + self.offset
            low = np.clip(np.floor(place).astype(int), 0, size - 2)
            share = np.expand_dims(place - low, [0, 1, 5 - axis])
            batch = batch.take(low, axis) * (1 - share) + batch.take(low + 1, axis) * share
        return batch.astype(np.float32)


@pytest.mark.parametrize(("grid", "offset"), [("kspace", 0.0), ("centre", 0.5 / 3 - 0.5)])
def test_the_self_ensemble_keeps_a_ramp_where_it_is_on_its_grid(grid: Any, offset: float) -> None:
    ramp = (np.arange(6)[:, None] + 2.0 * np.arange(6)).astype(np.float32)[None, None]
    network = Linear(3, offset)
    out = SelfEnsemble(network, 3, grid).run(ramp)
    # A linear network is exact on a ramp in every view; values reach 20, float32 rounding.
    np.testing.assert_allclose(out, network.run(ramp), rtol=0, atol=2e-5)
    if grid == "kspace":
        displaced = SelfEnsemble(network, 3, "centre").run(ramp)
        assert np.abs(displaced - network.run(ramp)).max() > 0.3
