"""One tiny export that the tests share, and checkpoints."""

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from poan_export.cli import main
from poan_export.export import open_gate
from poan_export.gate.parity import Gate
from poan_train.checkpoint import save_checkpoint
from tests.tiny.networks import TILE, facts_of, tiny_network


@pytest.fixture(scope="session")
def network() -> nn.Module:
    return tiny_network()


@pytest.fixture(scope="session")
def gate(network: nn.Module) -> Gate:
    return open_gate(network, facts_of(network), TILE, None)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[[nn.Module], Path]:
    def write(network: nn.Module) -> Path:
        path = tmp_path / "tiny.pt"
        save_checkpoint(path, facts_of(network), network.state_dict())
        return path

    return write


@pytest.fixture(scope="session")
def exported(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of ``poan-export --fp16`` for the tiny network."""
    folder = tmp_path_factory.mktemp("export")
    path = folder / "tiny.pt"
    save_checkpoint(path, facts_of(network), network.state_dict())
    arguments = ["--ckpt", str(path), "--tile", str(TILE), "--fp16", "--engine", "none"]
    arguments += ["--halo", "1", "--overlap", "2"]
    assert main(arguments) == 0
    return folder / "tiny"
