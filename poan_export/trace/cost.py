"""What a network costs: multiply-accumulates of one tile, by part."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from poan_export.trace.stages import kind_of


def part_of(module: str) -> str:
    """The part of the network that a module belongs to: its kind, attention told apart.

    >>> part_of("body.20.spatial.point.mix"), part_of("body.20.spatial.levels.0.scores")
    ('point attention', 'patch attention')
    >>> part_of("body.20.spatial.query.0"), part_of("body.20.channel.pool"), part_of("tail.2")
    ('patch attention', 'square root', 'tail')
    """
    kind = kind_of(module)
    if kind != "attention" or ".spatial" not in module:
        return kind
    return "point attention" if ".spatial.point" in module else "patch attention"


def macs_per_part(network: nn.Module, tile: int) -> dict[str, int]:
    """Multiply-accumulates of one tile (1, 1, tile, tile) by part, of products and convolutions.

    ``network`` is a rewritten one, so that what is counted is what is exported. What is added or
    multiplied element by element does not count: in the box form that is much of the time.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 1, tile, tile))
    root = type(network).__name__
    parts = {part_of(""): counter.get_total_flops() // 2}
    for name, _ in network.named_modules():
        part, outer = part_of(name), part_of(name.rpartition(".")[0])
        if part != outer:  # what a part holds is taken from the part that it lies in
            macs = sum(counter.flop_counts[f"{root}.{name}"].values()) // 2
            parts[part] = parts.get(part, 0) + macs
            parts[outer] = parts.get(outer, 0) - macs
    return {part: macs for part, macs in parts.items() if macs}


def gmac_per_part(network: nn.Module, tile: int) -> dict[str, float]:
    """:func:`macs_per_part` in 1e9, as the manifest states it."""
    return {part: round(macs / 1e9, 6) for part, macs in macs_per_part(network, tile).items()}
