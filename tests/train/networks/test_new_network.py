"""A new network is one file and one line: it then trains, evaluates, exports and runs."""

import json
from dataclasses import dataclass
from types import MappingProxyType

import nibabel
import numpy as np
import torch
from torch import nn

from poan_export import cli as export_cli
from poan_runtime.commands import run as run_cli
from poan_train import cli, evaluate, networks


@dataclass(frozen=True, kw_only=True)
class NewConfig:
    scale: int
    grid: str = "centre"
    width: int = 4


class New(nn.Module):
    def __init__(self, config: NewConfig) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, config.width, 3, padding=1)
        self.tail = nn.Conv2d(config.width, config.scale**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(config.scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shuffle(self.tail(torch.relu(self.body(x))))


def test_one_line_in_the_list_is_all_that_a_new_network_needs(scan_folder, tmp_path, monkeypatch):
    line = {"new": networks.Architecture(network=New, config=NewConfig, preset={}, small=True)}
    listed = MappingProxyType({**networks.ARCHITECTURES, **line})
    for place in ("poan_train.networks.ARCHITECTURES", "poan_export.export.ARCHITECTURES"):
        monkeypatch.setattr(place, listed)

    checkpoint, scan = tmp_path / "new.pt", scan_folder / "sub-1_T2w.nii.gz"
    training = ["--data", scan_folder, "--scale", 3, "--arch", "new", "--steps", 2, "--batch", 1]
    assert cli.main([*map(str, [*training, "--patch", 8, "--out", checkpoint])]) == 0
    evaluation = ["--ckpt", checkpoint, "--data", scan_folder, "--json", tmp_path / "e.json"]
    assert evaluate.main([*map(str, [*evaluation, "--tile", 10])]) == 0
    assert json.loads((tmp_path / "e.json").read_text())["arch"] == "new"
    export = ["--ckpt", str(checkpoint), "--fp16", "--tile", "10", "--engine", "none"]
    export.append("--allow-worse")
    assert export_cli.main(export) == 0
    manifest = json.loads((tmp_path / "new/manifest.json").read_text())
    assert (manifest["network"]["arch"], manifest["parity"]["verdict"]) == ("new", "pass")
    assert {f["precision"] for f in manifest["files"]} == {"fp32", "fp16"}
    out = tmp_path / "fine.nii.gz"
    assert run_cli.main([str(tmp_path / "new"), str(scan), "-o", str(out)]) == 0
    assert nibabel.load(out).shape == (120, 132, 5)
    assert np.asarray(nibabel.load(out).dataobj).any()
