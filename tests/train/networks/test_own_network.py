"""A network of one's own: with BatchNorm it trains, with nn.Upsample it is told the remedy."""

from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import nn

from poan_export import cli as export_cli
from poan_train import cli, networks
from poan_train.checkpoint import read_checkpoint


@dataclass(frozen=True, kw_only=True)
class OwnConfig:
    scale: int
    grid: str = "centre"
    up: bool = False


class Own(nn.Module):
    def __init__(self, config: OwnConfig) -> None:
        super().__init__()
        self.up = nn.Upsample(scale_factor=config.scale) if config.up else nn.PixelShuffle(2)
        channels = 1 if config.up else 4
        self.body = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1), nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.body(x))


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    line = networks.Architecture(network=Own, config=OwnConfig, preset={}, small=True)
    listed = MappingProxyType({**networks.ARCHITECTURES, "own": line})
    for place in ("poan_train.networks.ARCHITECTURES", "poan_export.export.ARCHITECTURES"):
        monkeypatch.setattr(place, listed)


def train(folder: Path, out: Path, *more: Any) -> int:
    arguments = ["--data", folder, "--scale", 2, "--arch", "own", "--steps", 3, "--batch", 1]
    return cli.main([*map(str, [*arguments, "--patch", 8, "--out", out, *more])])


@pytest.mark.usefixtures("own")
def test_a_network_with_batchnorm_trains_with_a_moving_average(
    scan_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "own.pt"
    assert train(scan_folder, out, "--ema", 0.9) == 0
    weights = read_checkpoint(out)[1]
    assert int(weights["body.1.num_batches_tracked"]) == 3
    assert weights["body.1.running_mean"].abs().max() > 0
    assert "warning" not in capsys.readouterr().err


@pytest.mark.usefixtures("own")
def test_upsample_is_told_before_the_first_step_and_by_the_exporter(
    scan_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "own.pt"
    assert train(scan_folder, out, "--set", "up=true") == 0
    remedy = "use poan_train.networks.blocks.BicubicUp"
    assert remedy in capsys.readouterr().err
    arguments = ["--ckpt", str(out), "--tile", "8", "--halo", "0", "--overlap", "2"]
    assert export_cli.main([*arguments, "--engine", "none", "--allow-worse"]) == 2
    assert remedy in capsys.readouterr().err


def test_a_patch_beyond_the_slice_is_told(
    scan_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", scan_folder, "--scale", 2, "--arch", "srcnn", "--steps", 1, "--batch", 1]
    assert cli.main([*map(str, [*arguments, "--patch", 64, "--out", tmp_path / "a.pt"])]) == 0
    assert "--patch 64: the smallest LR slice allows 20, which is taken" in capsys.readouterr().err
