"""Is the attention of a trained network alive, on real tiles?

    python -m benchmarks.alive --ckpt poan_train/checkpoints/mr_x2.pt --data VAL

For each checkpoint, on tiles from the middle of validation slices, LR without noise and at SNR 30:
entropy / log L of each attention branch (1 is uniform), what z = 0 changes of the gate (rms), and
what five Newton-Schulz iterations in place of the root do: the error of z, which the exporter's
gate holds below 1e-3, and the largest change of the output in its unit.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import record
from poan_export.rewrite.network import RootRule, rewrite
from poan_export.rewrite.root import Scheme
from poan_runtime.errors import PoanError
from poan_train import networks
from poan_train.checkpoint import load_network
from poan_train.data import cached_pair, default_cache
from poan_train.kinds import case_of
from poan_train.networks.audit import flatness, gate_change
from poan_train.networks.covariance import CovariancePooling
from poan_train.subjects import find_sources

KINDS = ("truncated", "snr30")
FIVE = Scheme(name="newton-schulz", iterations=5)
"""SAN's choice, which is no converged root."""
LIMITS = {"flatness": 0.95, "gate_change": 0.05, "z_error": 1e-3, "output_change": 1e-3}
"""Flatness at most; the others at least."""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.alive",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--ckpt", type=Path, nargs="+", required=True)
    p.add_argument("--data", type=Path, required=True, help="folder of validation volumes")
    p.add_argument("--out", type=Path, default=record.RESULTS / "alive.json")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        found = {ckpt.stem: audit(ckpt, args.data) for ckpt in args.ckpt}
    except PoanError as error:
        print(f"alive: {error}", file=sys.stderr)
        return 2
    record.write(args.out, {"networks": found, "limits": LIMITS, "machine": record.machine()})
    print(text(found))
    return 0


def audit(ckpt: Path, folder: Path) -> dict[str, Any]:
    """The figures of one checkpoint."""
    network, facts = load_network(ckpt)
    x, volumes = tiles(folder, facts.contrast, facts.scale, networks.ARCHITECTURES[facts.arch].tile)
    return {
        "sha256": record.hashes([ckpt])[ckpt.name],
        "arch": facts.arch,
        "steps": facts.training["steps"],
        "tiles": len(x),
        "volumes": volumes,
        "flatness": flatness(network, x),
        "gate_change": gate_change(network, x),
        **five_iterations(network, x),
    }


def tiles(folder: Path, contrast: str, scale: int, side: int) -> tuple[torch.Tensor, list[str]]:
    """(LR tiles (N, 1, t, t), the volumes' names): two slices of each volume in each kind."""
    found, names = [], []
    for source in find_sources(folder, contrast):
        pair = cached_pair(source, scale, "truncated", None, default_cache())
        names.append(source.path.name)
        for kind in KINDS:
            lr = case_of(pair, scale, kind).lr
            top, left = ((n - min(side, n)) // 2 for n in lr.shape[1:])
            chosen = lr[[len(lr) // 3, 2 * len(lr) // 3]]
            found.append(chosen[:, top : top + side, left : left + side])
    least = min(min(part.shape[1:]) for part in found)
    cut = np.concatenate([part[:, :least, :least] for part in found])
    return torch.from_numpy(np.ascontiguousarray(cut[:, None], np.float32)), names


@torch.no_grad()
def five_iterations(network: nn.Module, x: torch.Tensor) -> dict[str, Any]:
    """Least error of each z, and least and largest change of the output, over the tiles of x."""
    exact, z = with_z(network, x)
    rough, z_rough = with_z(rewrite(network, (RootRule(scheme=FIVE),)), x)
    errors = {n: (z_rough[n] - z[n]).norm(dim=1) / z[n].norm(dim=1) for n in z}
    change = (rough - exact).abs().amax(dim=(1, 2, 3))
    return {
        "z_error": {name: [float(e.min()), float(e.max())] for name, e in errors.items()},
        "output_change": [float(change.min()), float(change.max())],
    }


def with_z(network: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(output, z of each NCAB) of x."""
    found: dict[str, torch.Tensor] = {}
    handles = [
        module.register_forward_hook(lambda _m, _i, out, name=name: found.update({name: out}))
        for name, module in network.named_modules()
        if isinstance(module, CovariancePooling)
    ]
    out = network(x)
    for handle in handles:
        handle.remove()
    return out, found


def text(found: dict[str, dict[str, Any]]) -> str:
    """A row per checkpoint."""
    rows = [["network", "tiles", "entropy / log L", "z = 0, rms", "z error", "output"]]
    for name, own in found.items():
        flat = " ".join(f"{value:.3f}" for value in own["flatness"].values())
        gate = " ".join(f"{value:.1%}" for value in own["gate_change"].values())
        errors = " ".join(f"{a:.2%}..{b:.2%}" for a, b in own["z_error"].values())
        low, high = own["output_change"]
        row = [name, str(own["tiles"]), flat, gate, errors, f"{low:.1e}..{high:.1e}"]
        rows.append(row)
    return record.table(rows)


if __name__ == "__main__":
    raise SystemExit(main())
