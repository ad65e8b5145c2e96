"""Tiny networks to train."""

import pytest
import torch

from poan_train import networks
from tests.train.quick import SMALL


@pytest.fixture
def small_networks(monkeypatch):
    """poan-lite made small, so that a step takes milliseconds."""
    for name, value in SMALL.items():
        monkeypatch.setitem(networks.LITE, name, value)


@pytest.fixture
def tiny():
    """A function to a POAN of 8 channels and 2 blocks with seeded weights."""

    def make(scale=2, **changes):
        torch.manual_seed(0)
        values = {"blocks": 2, "poab_after": 1, "channels": 8, "embedding": 4, **changes}
        return networks.build("poan", networks.make_config("poan", scale, **values))

    return make
