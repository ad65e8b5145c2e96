"""A tiny network, its gate, its export, and checkpoints."""

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from poan_export.export import open_gate
from poan_export.gate.parity import Gate
from poan_export.gate.real_tiles import Scans
from poan_train.checkpoint import save_checkpoint
from tests.tiny.networks import TILE, facts_of, tiny_network


@pytest.fixture(scope="session")
def network() -> nn.Module:
    return tiny_network()


@pytest.fixture(scope="session")
def gate(network: nn.Module) -> Gate:
    return open_gate(network, facts_of(network), Scans(None, TILE, 2, {"method": "bicubic"}))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[[nn.Module], Path]:
    def write(network: nn.Module) -> Path:
        path = tmp_path / "tiny.pt"
        save_checkpoint(path, facts_of(network), network.state_dict())
        return path

    return write


@pytest.fixture(scope="session")
def exported(tiny_export: tuple[Path, Path]) -> Path:
    """The folder of ``poan-export --fp16`` for the tiny network; to read, not to change."""
    return tiny_export[1]
