"""The exported covariance pooling against the trained one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from poan_export.rewrite.pooling import BlockedPooling, blocked_covariance, tree_sum
from poan_train import networks
from poan_train.networks.covariance import CovariancePooling, covariance


@settings(max_examples=25, deadline=None)
@given(h=st.integers(2, 17), w=st.integers(2, 17), seed=st.integers(0, 99))
def test_the_tree_computes_the_trained_covariance_for_any_tile(h: int, w: int, seed: int) -> None:
    x = torch.randn(2, 5, h, w, generator=torch.Generator().manual_seed(seed)).double()
    # float64 rounding of a few hundred terms
    torch.testing.assert_close(
        blocked_covariance(x, 1e-5, 1e-10), covariance(x, 1e-5, 1e-10), rtol=1e-12, atol=1e-14
    )


def test_a_tree_sum_adds_every_part_once() -> None:
    parts = torch.arange(2 * 37 * 3 * 3).reshape(2, 37, 3, 3).double()
    assert torch.equal(tree_sum(parts), parts.sum(1))


def test_in_float32_a_dark_tile_keeps_its_root_where_a_plain_product_loses_it() -> None:
    # Features of a background tile: constant but for the zero padding's reach at the borders.
    g = torch.Generator().manual_seed(0)
    borders = torch.zeros(1, 3, 48, 48).double()
    borders[:, 0, 0] = borders[:, 1, :, 0] = borders[:, 2, -1] = 1
    mix = torch.randn(32, 3, generator=g).double()
    x = torch.einsum("ck,bkhw->bchw", mix - mix.mean(0), borders)
    x = (1e-3 * x + torch.rand(1, 32, 1, 1, generator=g)).float()
    pool = CovariancePooling(networks.make_config("poan-lite-dense", 2, eps=1e-5))
    exact = pool(x.double())
    roots = {
        "plain": pool.power(covariance(x, pool.eps, pool.floor).double()).mean(1),
        "blocked": pool.power(blocked_covariance(x, pool.eps, pool.floor).double()).mean(1),
    }
    errors = {name: float((z - exact).norm() / exact.norm()) for name, z in roots.items()}
    # The product's sums alone: the root is float64 on both sides. Measured 1.2e-4 and 1.9e-3;
    # storing the exact covariance in float32 costs 5e-5 of that.
    assert errors["blocked"] < 3e-4
    assert errors["plain"] > 3 * errors["blocked"]


@pytest.mark.parametrize("z_norm", ["trace", "none"])
def test_pooling_is_the_trained_module_up_to_rounding(z_norm: str) -> None:
    pool = CovariancePooling(networks.make_config("poan-lite", 2, channels=8, z_norm=z_norm))
    x = torch.randn(3, 8, 12, 12, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(BlockedPooling(pool)(x), pool(x), rtol=1e-10, atol=1e-12)
