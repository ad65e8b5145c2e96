"""A network that is worse than interpolation is not exported without being told."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from poan_export.cli import main
from poan_export.gate.quality import Quality, quality_of
from poan_export.gate.real_tiles import Case
from poan_train.checkpoint import save_checkpoint
from poan_train.evaluate import bicubic
from tests.tiny.networks import TILE, facts_of, tiny_network

WORSE = {"tile_psnr": 20.0, "tile_psnr_bicubic": 30.0}
BETTER = {"tile_psnr": 31.0, "tile_psnr_bicubic": 30.0}


class Bicubic(nn.Module):
    """Bicubic interpolation and a constant, as a network."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = offset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up = bicubic(x[:, 0].float().numpy(), 2, "centre")
        return torch.from_numpy(up)[:, None].to(x.dtype) + self.offset


def cases() -> list[Case]:
    random = np.random.default_rng(0)
    found = []
    for k in range(3):
        hr = random.random((1, 24, 24)).astype(np.float32)
        lr = hr.reshape(1, 12, 2, 12, 2).mean(axis=(2, 4))
        found.append(Case(name=str(k), lr=lr, hr=hr))
    return found


@pytest.mark.parametrize(("offset", "worse"), [(0.0, False), (0.5, True)])
def test_the_gain_is_measured_against_both_interpolations(offset: float, worse: bool) -> None:
    found = quality_of(
        Bicubic(offset), cases(), scale=2, grid="centre", metrics={}, own_tiles=False
    )
    if not worse:
        # the same arithmetic in float32
        assert found.sr == pytest.approx(found.bicubic, abs=1e-5)
    assert found.gain == pytest.approx(found.sr - max(found.bicubic, found.sinc))
    assert found.is_worse == worse


@pytest.mark.parametrize(("bicubic", "sinc"), [(22.0, 21.0), (21.0, 22.0)])
def test_the_gain_is_over_the_better_one_and_worse_is_below_both(
    bicubic: float, sinc: float
) -> None:
    between = Quality(sr=21.5, bicubic=bicubic, sinc=sinc, validation=None, own_tiles=True)
    assert between.gain == -0.5
    assert not between.is_worse
    assert dataclasses.replace(between, sr=20.5).is_worse


def test_scans_of_a_dependency_do_not_overrule_the_networks_own_validation() -> None:
    foreign = Quality(sr=20.0, bicubic=22.0, sinc=21.0, validation=1.0, own_tiles=False)
    assert not foreign.is_worse
    assert dataclasses.replace(foreign, own_tiles=True).is_worse
    assert dataclasses.replace(foreign, sr=30.0, validation=-0.1).is_worse


@pytest.mark.parametrize(
    ("sr", "said"),
    [
        (24.5, None),
        (24.4, "below sinc on real tiles; train longer"),
        (24.1, "below bicubic and sinc on real tiles; train longer"),
    ],
)
def test_what_interpolation_does_better_is_named(sr: float, said: str | None) -> None:
    quality = Quality(sr=sr, bicubic=24.2, sinc=24.5, validation=0.2, own_tiles=False)
    assert quality.shortfall == said
    assert not quality.is_worse


def checkpoint(folder: Path, metrics: dict[str, Any]) -> list[str]:
    network = tiny_network()
    facts = dataclasses.replace(facts_of(network, steps=5), metrics=metrics)
    save_checkpoint(folder / "tiny.pt", facts, network.state_dict())
    arguments = ["--ckpt", str(folder / "tiny.pt"), "--tile", str(TILE), "--engine", "none"]
    return [*arguments, "--halo", "1", "--overlap", "2"]


@pytest.mark.slow
def test_a_network_below_bicubic_is_refused_with_status_3_unless_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = checkpoint(tmp_path, WORSE)
    assert main(arguments) == 3
    said = capsys.readouterr().err
    assert "its validation: -10.00 dB: worse than interpolation" in said
    assert said.count("its validation") == 1
    assert not (tmp_path / "tiny").exists()
    assert main([*arguments, "--allow-worse"]) == 0
    gains = json.loads((tmp_path / "tiny/manifest.json").read_text())["gains"]
    assert [*gains] == ["bicubic"]
    said = capsys.readouterr().err
    assert f"{gains['bicubic']:+.2f} dB" in said
    assert "poan-export: warning: below bicubic and sinc on real tiles; train longer\n" in said
