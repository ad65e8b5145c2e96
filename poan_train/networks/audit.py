"""Is the attention alive? How flat its branches are, and whether the gate depends on the image.

An attention whose weights are all alike hands on the mean of the map, and a gate that ignores z is
a constant: both cost time and do nothing. The figures here tell, on any images.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from poan_train.networks.attention import PointAttention, PyramidAttention, thinned
from poan_train.networks.covariance import NCAB


@torch.no_grad()
def flatness(network: nn.Module, x: torch.Tensor) -> dict[str, float]:
    """Entropy / log L of each attention branch on x (N, 1, h, w), the mean over its queries.

    1 is uniform, 0 a single key. Names are ``body.8.point`` and ``body.8.level 0.8``.
    """
    found: dict[str, float] = {}

    def look(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            block = name.removesuffix(".branches." + name.rpartition(".")[2])
            block = block.removesuffix(".spatial")
            for branch, weights in branch_weights(module, inputs[0]).items():
                found[f"{block}.{branch}"] = entropy(weights) / math.log(weights.shape[-1])

        return hook

    _watch(network, (PointAttention, PyramidAttention), look, x)
    return found


def branch_weights(module: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Attention (B, queries, keys) of each branch in ``module`` for its input x (B, C, h, w)."""
    if isinstance(module, PointAttention):
        return {"point": module.weights(module.theta(x), module.phi(thinned(x, module.stride)))}
    assert isinstance(module, PyramidAttention)
    query = module.query(x)
    return {
        f"level {level:g}": module.rule.weights(query, module.maps(x, level)[0], module.scale(i))
        for i, level in enumerate(module.levels)
    }


def entropy(weights: torch.Tensor) -> float:
    """Mean entropy in nats of the last axis."""
    return float(-(weights * weights.clamp_min(1e-30).log()).sum(-1).mean())


@torch.no_grad()
def gate_change(network: nn.Module, x: torch.Tensor) -> dict[str, float]:
    """By how much each NCAB's gate changes with z = 0: rms of the change / rms of the gate."""
    found: dict[str, float] = {}

    def look(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            assert isinstance(module, NCAB)
            z = module.pool(inputs[0])
            gate = module.weights(z)
            change = gate - module.weights(torch.zeros_like(z))
            found[name] = float(change.square().mean().sqrt() / gate.square().mean().sqrt())

        return hook

    _watch(network, (NCAB,), look, x)
    return found


def _watch(
    network: nn.Module,
    kinds: tuple[type[nn.Module], ...],
    look: Callable[[str], Callable[[nn.Module, Any], None]],
    x: torch.Tensor,
) -> None:
    handles = [
        module.register_forward_pre_hook(look(name))
        for name, module in network.named_modules()
        if isinstance(module, kinds)
    ]
    try:
        network(x)
    finally:
        for handle in handles:
            handle.remove()
