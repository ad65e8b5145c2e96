"""Tiny networks: an export of them costs seconds."""

from typing import Any

import torch
from torch import nn

from poan_train import networks
from poan_train.checkpoint import Facts

TILE = 12
TINY: dict[str, Any] = {
    "blocks": 2,
    "poab_after": 1,
    "channels": 8,
    "embedding": 4,
    "point": True,
    "pyramid": (0.6,),
}


def tiny_network(**changes: Any) -> nn.Module:
    """A seeded network whose POAB is not inert (the preset starts it at zero)."""
    config = networks.make_config("poan-lite", 2, **{**TINY, **changes})
    torch.manual_seed(0)
    network = networks.build("poan-lite", config)
    for name, parameter in network.named_parameters():
        if name == "body.1.out.weight":
            nn.init.normal_(parameter, 0, 0.1)
    return network.eval()


def facts_of(network: Any, steps: int = 0) -> Facts:
    return Facts(
        arch="poan-lite",
        network=networks.config_to_json(network.config),
        contrast="T2",
        degradation={"method": "bicubic", "scale": 2},
        intensity={"rule": "percentile-nonzero", "percentile": 99.9},
        training={"data": [], "licence": "none", "steps": steps},
    )
