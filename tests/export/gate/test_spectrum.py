"""The measured choice of the square-root iteration."""

import numpy as np
import pytest
from torch import nn

from poan_export.gate.parity import Gate
from poan_export.gate.spectrum import MARGIN, candidates, choose, condition_number, root_error
from poan_export.rewrite.root import Scheme
from poan_export.trace.stages import pools_of
from poan_runtime.errors import PoanError
from tests.tiny.networks import tiny_network


def test_the_cheapest_scheme_within_the_margin_is_taken(network: nn.Module, gate: Gate) -> None:
    choice = choose(network, gate.reference, gate.float32, 2, candidates())
    assert choice.error <= MARGIN
    cheaper = [s for s in candidates() if s.products < choice.scheme.products]
    assert cheaper
    for scheme in cheaper[-4:]:
        assert root_error(scheme, gate.reference, gate.float32, network) > MARGIN


def test_the_condition_number_is_that_of_the_regularised_covariance() -> None:
    (_, pool), *_ = pools_of(tiny_network()).values()
    white = np.random.default_rng(0).normal(size=(1, 8, 40, 40))
    assert 1 < condition_number(white, pool) < 2
    flat = np.repeat(white[:, :1], 8, axis=1)  # rank 1: eigenvalues trace and eps trace / C
    assert condition_number(flat, pool) == pytest.approx(8 / pool.eps, rel=2e-3)


def test_if_no_scheme_meets_the_margin_the_best_is_taken(network: nn.Module, gate: Gate) -> None:
    few = [Scheme(name="newton-schulz", iterations=k) for k in (4, 6, 5)]
    choice = choose(network, gate.reference, gate.float32, 2, few)
    assert choice.scheme.iterations == 6
    assert choice.error > 0.01


def test_a_network_without_pooling_has_no_root_to_choose() -> None:
    with pytest.raises(PoanError, match="no covariance pooling"):
        choose(tiny_network(channel="none"), {}, {}, 2, candidates())
