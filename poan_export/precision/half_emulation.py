"""Half arithmetic as tensor cores do it, on a CPU: an fp16 check that needs no GPU.

ONNX Runtime's CPU provider computes fp16 graphs in fp32, which hides every overflow, and true
half arithmetic in numpy runs at 0.5 GFLOP/s. Here each operation of the half-precision module
takes its operands in half, sums in float32, and rounds its result to half.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from poan_export.gate.parity import CHUNK, Array, finite
from poan_export.gate.real_tiles import chunks
from poan_export.trace.stages import OUTPUT, Tapped, taps_of
from poan_runtime.models.manifest import Check

HALF = (torch.float16, torch.bfloat16)


class HalfArithmetic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Operations on half tensors in float32, rounded to half.

    ``record`` gets the largest magnitude of each result, as rounded.
    """

    def __init__(self, record: Callable[[float], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.record = record

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        floating: list[torch.dtype] = []
        tree_map(lambda x: floating.append(x.dtype) if _is_floating(x) else None, (args, kwargs))
        half = set(floating)
        if len(half) != 1 or not half.issubset(HALF) or _keeps_values(func):
            out = func(*args, **kwargs)
            if isinstance(out, torch.Tensor) and out.dtype in HALF and not _aliases(func):
                self.record(_largest(out.float(), out.dtype))
            return out
        (dtype,) = half
        wide = tree_map(lambda x: x.float() if _is_floating(x) else x, (args, kwargs))
        out = func(*wide[0], **wide[1])
        if isinstance(out, torch.Tensor) and out.dtype == torch.float32:
            self.record(_largest(out, dtype))
        return tree_map(lambda x: x.to(dtype) if _is_floating(x) else x, out)


def _largest(x: torch.Tensor, dtype: torch.dtype) -> float:
    """Largest magnitude of a float32 tensor, rounded to ``dtype`` as the tensor will be."""
    if not x.numel():
        return 0.0
    low, high = torch.aminmax(x)  # NaN if there is one; many times faster than in half precision
    return float(torch.maximum(-low, high).to(dtype))


def _is_floating(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def _aliases(func: Any) -> bool:
    return any(r.alias_info is not None for r in func._schema.returns)


def _keeps_values(func: Any) -> bool:
    """Whether an operation only views, copies or casts, so that there is nothing to round."""
    return (
        _aliases(func) or func._schema.is_mutable or func._overloadpacket is torch.ops.aten._to_copy
    )


@dataclass(frozen=True, kw_only=True)
class HalfRun:
    """Stages of a run in half arithmetic, and the largest half-precision value per module."""

    stages: Mapping[str, Array]
    largest: Mapping[str, float]
    limit: float
    """Largest finite number of the precision: 65504 for fp16."""

    @property
    def headroom(self) -> dict[str, float]:
        """Module -> limit over its largest value: below 1 it overflows (then it is 0)."""
        return {
            name: 0.0 if not np.isfinite(top) else self.limit / max(top, 1e-30)
            for name, top in self.largest.items()
        }

    def checks(self, file: str) -> list[Check]:
        """The largest value of each module against the limit, in the order of computation."""
        return [
            Check(
                file=file,
                stage=name or OUTPUT,
                case="all",
                metric="largest_value",
                value=finite(top),
                tolerance=self.limit,
                reason="half precision ends there; beyond it a value is infinite",
            )
            for name, top in self.largest.items()
        ]

    @property
    def tightest(self) -> tuple[str, float]:
        """The module with the least headroom, the first in the order of computation."""
        return min(self.headroom.items(), key=lambda item: item[1], default=("none", np.inf))


def run_half(network: nn.Module, batch: Array, dtype: torch.dtype) -> HalfRun:
    """Every stage of a network of :func:`.islands.in_half` in half arithmetic."""
    largest: dict[str, float] = {}
    path = [""]

    def record(top: float) -> None:
        seen = largest.get(path[-1], 0.0)
        largest[path[-1]] = top if np.isnan(top) or top > seen else seen

    tapped = Tapped(network, taps_of(network))
    handles = [h for name, m in network.named_modules() for h in _follow(name, m, path)]
    rows: list[list[Array]] = []
    try:
        with torch.no_grad(), HalfArithmetic(record):
            for part in chunks(batch, CHUNK):
                rows.append([y.numpy() for y in tapped(torch.from_numpy(part))])
    finally:
        for handle in (*handles, *tapped.handles):
            handle.remove()
    stages = {
        name: np.concatenate(parts)
        for name, parts in zip(tapped.names, zip(*rows, strict=True), strict=True)
    }
    return HalfRun(stages=stages, largest=largest, limit=float(torch.finfo(dtype).max))


def _follow(name: str, module: nn.Module, path: list[str]) -> tuple[Any, Any]:
    """Hooks that keep the name of the running module on top of ``path``."""

    def enter(module: nn.Module, inputs: Any) -> None:
        path.append(name)

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        path.pop()

    return (
        module.register_forward_pre_hook(enter, prepend=True),
        module.register_forward_hook(leave),
    )
