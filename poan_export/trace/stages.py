"""Stages of a network that the parity gate looks into, on both sides of the rewrites.

A *stage* is an inner tensor with a name, the same for the trained network and for the rewritten
one, so that each can be asked for it: ``body.8.attention.point``, ``body.8.z``, ``output``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from poan_export.rewrite.attention import MergedSpatial, merged_projection, split_projection
from poan_train.networks.attention import PDSB, PointAttention, PyramidAttention
from poan_train.networks.covariance import CovariancePooling
from poan_train.networks.poan import POAB

Kind = Literal["backbone", "attention", "square root", "tail"]
OUTPUT = "output"
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Tap:
    """One stage and where it is read."""

    stage: str
    kind: Kind
    module: str
    side: Literal["input", "output"] = "output"
    share: Callable[[torch.Tensor], torch.Tensor] | None = None
    """Applied to what is read: the share of a branch in the trained network."""


def kind_of(stage: str) -> Kind:
    """Which part of the network a stage or a module belongs to.

    >>> kind_of("body.8.z"), kind_of("body.8.attention.level 0.8"), kind_of("output")
    ('square root', 'attention', 'tail')
    >>> kind_of("body.8.spatial.point.mix"), kind_of("tail.0"), kind_of("body.3.body.0")
    ('attention', 'tail', 'backbone')
    """
    if stage == OUTPUT or stage.startswith(("tail", "skip")):
        return "tail"
    if stage.endswith((".z", ".pool", ".power")):
        return "square root"
    return "attention" if ".attention" in stage or ".spatial" in stage else "backbone"


def taps_of(network: nn.Module) -> tuple[Tap, ...]:
    """Taps in the order of computation; the network's output is not among them."""
    taps: list[Tap] = []
    in_block: set[str] = set()
    for name, module in network.named_modules():
        if isinstance(module, POAB):
            taps.append(Tap(stage=f"{name}.x", kind="backbone", module=name, side="input"))
            if isinstance(module.spatial, MergedSpatial):
                taps += _merged_taps(name, module.spatial)
            elif isinstance(module.spatial, PDSB):
                taps += _trained_taps(name, module)
            pools = [n for n, m in module.named_modules() if isinstance(m, CovariancePooling)]
            for pool in pools:
                taps.append(Tap(stage=f"{name}.z", kind="square root", module=f"{name}.{pool}"))
                in_block.add(f"{name}.{pool}")
        elif isinstance(module, CovariancePooling) and name not in in_block:
            taps.append(Tap(stage=f"{name}.x", kind="backbone", module=name, side="input"))
            taps.append(Tap(stage=f"{name}.z", kind="square root", module=name))
    return tuple(taps)


def pools_of(network: nn.Module) -> dict[str, tuple[str, CovariancePooling]]:
    """Stage of z -> (stage of the features that it pools, the pooling module)."""
    pools: dict[str, tuple[str, CovariancePooling]] = {}
    stages = [tap.stage for tap in taps_of(network)]
    for tap in taps_of(network):
        if tap.kind == "square root":
            block = tap.stage.removesuffix(".z")
            features = f"{block}.attention" if f"{block}.attention" in stages else f"{block}.x"
            module = network.get_submodule(tap.module)
            assert isinstance(module, CovariancePooling)
            pools[tap.stage] = (features, module)
    return pools


def _merged_taps(block: str, spatial: MergedSpatial) -> list[Tap]:
    at, stage = f"{block}.spatial", f"{block}.attention"
    taps: list[Tap] = []
    if spatial.point is not None:
        taps.append(Tap(stage=f"{stage}.point", kind="attention", module=f"{at}.point"))
    for i, level in enumerate(spatial.levels):
        taps.append(
            Tap(
                stage=f"{stage}.level {level.level:g}",
                kind="attention",
                module=f"{at}.levels.{i}",
            )
        )
    return [*taps, Tap(stage=stage, kind="attention", module=at)]


def _trained_taps(name: str, block: POAB) -> list[Tap]:
    """Shares of each branch in the trained network: its columns of W on its output."""
    assert isinstance(block.spatial, PDSB)
    weight, _ = merged_projection(block)
    pieces = dict(split_projection(block, weight))
    taps: list[Tap] = []
    for i, branch in enumerate(block.spatial.branches):
        at = f"{name}.spatial.branches.{i}"
        if isinstance(branch, PointAttention):
            bias = branch.out.bias if isinstance(branch.out, nn.Conv2d) else None
            share = _share(pieces["point"], 0, bias)
            taps.append(
                Tap(stage=f"{name}.attention.point", kind="attention", module=at, share=share)
            )
            continue
        assert isinstance(branch, PyramidAttention)
        for j, level in enumerate(branch.levels):
            piece = f"level {level:g}"
            share = _share(pieces[piece], j, None)
            stage = f"{name}.attention.{piece}"
            taps.append(Tap(stage=stage, kind="attention", module=at, share=share))
    return [*taps, Tap(stage=f"{name}.attention", kind="attention", module=f"{name}.project")]


def _share(
    weight: torch.Tensor, index: int, bias: torch.Tensor | None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Columns ``weight`` (C, C) on the ``index``-th C channels, less what belongs to the bias."""

    def share(y: torch.Tensor) -> torch.Tensor:
        c = weight.shape[1]
        part = y[:, index * c : (index + 1) * c]
        if bias is not None:
            part = part - bias.to(y.dtype)[:, None, None]
        return torch.einsum("oc,bchw->bohw", weight.to(y.dtype), part)

    return share


class Tapped(nn.Module):
    """A network that returns its output and, after it, one tensor per tap, in float32 or more."""

    def __init__(self, network: nn.Module, taps: tuple[Tap, ...]) -> None:
        super().__init__()
        self.network = network
        self.taps = taps
        self._seen: dict[str, torch.Tensor] = {}
        for block in network.modules():
            if isinstance(block, PDSB):
                block.apart = True  # each branch gives an output of its own
        self.handles: list[Any] = []
        for tap in taps:
            module = network.get_submodule(tap.module)
            if tap.side == "input":
                handle = module.register_forward_pre_hook(self._on_input(tap))
            else:
                handle = module.register_forward_hook(self._on_output(tap))
            self.handles.append(handle)

    def _on_input(self, tap: Tap) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            self._keep(tap, inputs[0])

        return hook

    def _on_output(self, tap: Tap) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            self._keep(tap, output)

        return hook

    def _keep(self, tap: Tap, value: torch.Tensor) -> None:
        self._seen[tap.stage] = value if tap.share is None else tap.share(value)

    @property
    def names(self) -> list[str]:
        """Names of what ``forward`` returns."""
        return [OUTPUT, *(tap.stage for tap in self.taps)]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self._seen.clear()
        y = self.network(x)
        seen = dict(self._seen)
        self._seen.clear()
        return tuple(_wide(v) for v in (y, *(seen[tap.stage] for tap in self.taps)))


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
