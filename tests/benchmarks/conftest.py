"""One tiny network, exported once."""

from pathlib import Path

import pytest

from poan_export.cli import main
from poan_train.checkpoint import save_checkpoint
from tests.tiny.networks import facts_of, tiny_network

TILE = 12


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Checkpoint and exported folder of a network x2 with eight channels, tile 12."""
    folder = tmp_path_factory.mktemp("benchmarks")
    network = tiny_network()
    ckpt = folder / "tiny.pt"
    save_checkpoint(ckpt, facts_of(network), network.state_dict())
    arguments = ["--ckpt", str(ckpt), "--tile", str(TILE), "--engine", "none"]
    assert main([*arguments, "--halo", "0", "--overlap", "2"]) == 0
    return ckpt, folder / "tiny"
