"""Milliseconds of the paper's network by form of the attention, tile and batch, in half."""

from typing import Any, get_args

import torch

from benchmarks.gpu_check.rung import NothingToRunOnError
from poan_export.precision.islands import default_islands, in_half
from poan_export.rewrite.attention import Form
from poan_export.rewrite.network import rewrite, rules_for
from poan_export.rewrite.root import Scheme
from poan_train import networks

TILES, BATCHES = (60, 64), (8, 16, 32)
WARM_UP, COUNTED = 5, 20


def run() -> dict[str, Any]:
    """Median of `COUNTED` runs each, by CUDA events; None where memory does not suffice."""
    if not torch.cuda.is_available():
        raise NothingToRunOnError(f"torch {torch.__version__} finds no GPU")
    torch.manual_seed(0)
    network = networks.build("poan", networks.make_config("poan", 2)).eval()
    found: dict[str, float | None] = {}
    for form in get_args(Form):
        exported = rewrite(network, rules_for(Scheme(name="quintic", iterations=7), form))
        half = in_half(exported, "fp16", default_islands(exported, "fp16")).cuda()
        for tile in TILES:
            for batch in BATCHES:
                found[f"{form}, tile {tile}, batch {batch}"] = milliseconds(half, tile, batch)
    return {"ms": found}


@torch.no_grad()
def milliseconds(network: torch.nn.Module, tile: int, batch: int) -> float | None:
    """Median time of one batch."""
    tiles = torch.rand(batch, 1, tile, tile, device="cuda")
    times = []
    try:
        for _ in range(WARM_UP + COUNTED):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            network(tiles)
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None
    return float(sorted(times[WARM_UP:])[COUNTED // 2])
