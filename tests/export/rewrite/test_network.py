"""Each rewrite rule has a case that it refuses; tracing finds what no rule knows."""

import copy

import pytest
import torch
from torch import nn

from poan_export.rewrite.network import (
    PoolingRule,
    RootRule,
    SlopeRule,
    SpatialRule,
    rewrite,
    rules_for,
)
from poan_export.rewrite.pooling import BlockedPooling
from poan_export.rewrite.root import Scheme
from poan_export.trace.onnx_export import export_twin
from poan_runtime.errors import PoanError
from poan_train.networks.covariance import EighPower
from tests.tiny.networks import TILE, tiny_network

SCHEME = Scheme(name="quintic", iterations=8)
RULES = rules_for(SCHEME, "box")


def test_the_rewritten_network_is_the_network_and_holds_no_eigh(network: nn.Module) -> None:
    before = copy.deepcopy(network.state_dict())
    rewritten = rewrite(network, RULES).double()
    x = torch.rand(2, 1, TILE, TILE, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        expected = copy.deepcopy(network).double()(x)
        # Quintic 8 in float64 is within 1e-8 of the root; the rest is rounding.
        torch.testing.assert_close(rewritten(x), expected, rtol=0, atol=1e-8)
    kinds = {type(m) for m in rewritten.modules()}
    assert EighPower not in kinds
    assert BlockedPooling in kinds
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert EighPower in {type(m) for m in network.modules()}


def test_a_power_other_than_one_half_is_refused_by_name() -> None:
    with pytest.raises(PoanError, match=r"body\.1\.channel\.pool\.power: .* power 1/2 .* is 0\.3"):
        rewrite(tiny_network(alpha=0.3), [RootRule(scheme=SCHEME)])


class OtherRoot(nn.Module):
    def forward(self, sigma: torch.Tensor) -> torch.Tensor:
        return torch.linalg.cholesky(sigma)


def test_a_pooling_with_an_unknown_root_is_refused_by_name() -> None:
    network = tiny_network()
    network.get_submodule("body.1.channel.pool").power = OtherRoot()
    with pytest.raises(PoanError, match=r"body\.1\.channel\.pool: no square root .* OtherRoot"):
        rewrite(network, [PoolingRule()])


def test_an_unregularised_covariance_is_refused() -> None:
    with pytest.raises(PoanError, match=r"body\.1\.channel\.pool: .*unregularised.*eps 0\.0"):
        rewrite(tiny_network(eps=0.0), RULES)


def test_a_wider_projection_behind_the_spatial_block_is_refused() -> None:
    network = tiny_network()
    network.get_submodule("body.1").project = nn.Conv2d(8, 8, 3, padding=1)
    with pytest.raises(PoanError, match=r"body\.1: expected a 1x1 convolution"):
        rewrite(network, [SpatialRule(form="box")])


def test_an_unknown_branch_is_refused() -> None:
    network = tiny_network()
    network.get_submodule("body.1.spatial").branches[0] = nn.Identity()  # type: ignore[operator]
    with pytest.raises(PoanError, match=r"body\.1: no exported form of the branch Identity"):
        rewrite(network, [SpatialRule(form="box")])


def test_a_prelu_of_one_slope_becomes_a_leaky_relu_with_no_bit_changed() -> None:
    pair = nn.Sequential(nn.PReLU(init=0.37), nn.PReLU(3))
    rewritten = rewrite(pair, [SlopeRule()])
    assert [type(module) for module in rewritten.children()] == [nn.LeakyReLU, nn.PReLU]
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(rewritten(x), pair(x))


class Whitening(nn.Module):
    """A module that no rule knows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(2)
        values, vectors = torch.linalg.eigh(flat @ flat.transpose(1, 2))
        return (vectors * values[:, None]) @ flat


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Whitening(), "linalg_eigh: a matrix decomposition or solve has no ONNX operator"),
        (nn.Fold((4, 4), 1), "col2im: TensorRT rejects Col2Im"),
    ],
)
def test_a_forbidden_operator_is_found_by_tracing_and_its_module_named(
    module: nn.Module, reason: str
) -> None:
    class Host(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before = nn.Conv2d(1, 4, 1)
            self.inner = nn.Sequential(module)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.before(x)
            return self.inner(y if isinstance(module, Whitening) else y.flatten(2))

    with pytest.raises(PoanError, match=r"inner\.0: it calls " + reason):
        export_twin(Host().eval(), 4)
