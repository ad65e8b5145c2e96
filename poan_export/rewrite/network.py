"""Rewrites of modules before export: each rule is a pattern, a check and a replacement.

Modules are rewritten, not the graph: ``torch.linalg.eigh`` has no ONNX operator, so there is no
graph to rewrite. A rule that matches a module but cannot rewrite it refuses, naming the module
and the reason; what no rule knows is found afterwards by tracing (:func:`refuse_forbidden`).
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from poan_export.rewrite.attention import Form, MergedSpatial
from poan_export.rewrite.pooling import BlockedPooling
from poan_export.rewrite.root import NewtonSchulz, Quintic, Scheme
from poan_runtime.errors import PoanError
from poan_train.networks.attention import PDSB, PointAttention, PyramidAttention
from poan_train.networks.covariance import CovariancePooling, EighPower
from poan_train.networks.poan import POAB

# aten operators that no target runs, or not with fixed shapes.
FORBIDDEN = {
    "col2im": "TensorRT rejects Col2Im (F.fold); add padded shifts",
    "_upsample_bicubic2d_aa": "TensorRT rejects an antialiased Resize; use a constant matrix",
    "_upsample_bilinear2d_aa": "TensorRT rejects an antialiased Resize; use a constant matrix",
    **dict.fromkeys(
        (
            "upsample_nearest2d",
            "_upsample_nearest_exact2d",
            "upsample_bilinear2d",
            "upsample_bicubic2d",
        ),
        "runtimes disagree on a Resize's coordinates; use poan_train.networks.blocks.BicubicUp "
        "or a PixelShuffle",
    ),
    "nonzero": "its output shape depends on the data",
    "masked_select": "its output shape depends on the data",
    "_unique2": "its output shape depends on the data",
    "_local_scalar_dense": "a Python number read from the data would be frozen into the graph",
}
HARMLESS_LINALG = {"linalg_vector_norm", "linalg_matmul", "linalg_vecdot", "linalg_diagonal"}


class Rule(Protocol):
    """One rewrite: what it matches, why it may refuse, what it puts there."""

    def matches(self, module: nn.Module) -> bool: ...

    def refusal(self, module: nn.Module) -> str | None: ...

    def replacement(self, module: nn.Module) -> nn.Module: ...


@dataclass(frozen=True, kw_only=True)
class RootRule:
    """Sigma^(1/2) by eigh becomes an iteration of matrix products."""

    scheme: Scheme

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, EighPower)

    def refusal(self, module: nn.Module) -> str | None:
        if module.alpha != 0.5:
            return f"the iterations give the power 1/2 of the covariance, this is {module.alpha}"
        return None

    def replacement(self, module: nn.Module) -> nn.Module:
        return self.scheme.module()


@dataclass(frozen=True, kw_only=True)
class PoolingRule:
    """The covariance is summed in a tree (:mod:`poan_export.rewrite.pooling`)."""

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, CovariancePooling)

    def refusal(self, module: nn.Module) -> str | None:
        known = (EighPower, NewtonSchulz, Quintic)
        if not isinstance(module.power, known):
            return f"no square root of matrix products for {type(module.power).__name__}"
        if not isinstance(module.eps, float) or module.eps <= 0:
            return f"float32 has no root of an unregularised covariance (eps {module.eps})"
        return None

    def replacement(self, module: nn.Module) -> nn.Module:
        assert isinstance(module, CovariancePooling)
        return BlockedPooling(module)


@dataclass(frozen=True, kw_only=True)
class SpatialRule:
    """PDSB and the 1x1 convolution behind it become a sum of the branches' shares."""

    form: Form

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, POAB) and isinstance(module.spatial, PDSB)

    def refusal(self, module: nn.Module) -> str | None:
        assert isinstance(module, POAB)
        if not isinstance(module.project, nn.Conv2d) or module.project.kernel_size != (1, 1):
            return f"expected a 1x1 convolution behind the spatial block, got {module.project}"
        assert isinstance(module.spatial, PDSB)
        for branch in module.spatial.branches:
            if not isinstance(branch, PointAttention | PyramidAttention):
                return f"no exported form of the branch {type(branch).__name__}"
        return None

    def replacement(self, module: nn.Module) -> nn.Module:
        assert isinstance(module, POAB)
        merged = MergedSpatial(module, self.form)
        module.spatial, module.project = merged, nn.Identity()
        return module


@dataclass(frozen=True, kw_only=True)
class SlopeRule:
    """A PReLU of one slope becomes a LeakyReLU, which TensorRT computes within a convolution.

    One with a slope for each channel stays what it is.
    """

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, nn.PReLU) and module.weight.numel() == 1

    def refusal(self, module: nn.Module) -> str | None:
        return None

    def replacement(self, module: nn.Module) -> nn.Module:
        assert isinstance(module, nn.PReLU)
        return nn.LeakyReLU(module.weight.item())


def rules_for(scheme: Scheme, form: Form) -> tuple[Rule, ...]:
    """All rewrites, in the order in which they apply."""
    return (RootRule(scheme=scheme), PoolingRule(), SpatialRule(form=form), SlopeRule())


def rewrite(network: nn.Module, rules: Sequence[Rule]) -> nn.Module:
    """A copy of ``network`` with every match of every rule replaced.

    Raises PoanError naming the module and the reason where a rule refuses; ``network`` itself
    is never changed.
    """
    result = copy.deepcopy(network).eval()
    for rule in rules:
        for name, module in list(result.named_modules()):
            if not rule.matches(module):
                continue
            reason = rule.refusal(module)
            if reason is not None:
                raise PoanError(f"cannot export {name or 'the network'}: {reason}")
            result = _put(result, name, rule.replacement(module))
    return result


def _put(network: nn.Module, name: str, module: nn.Module) -> nn.Module:
    if not name:
        return module
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)
    return network


def refuse_forbidden(program: torch.export.ExportedProgram) -> None:
    """Raise PoanError naming the module whose trace holds an operator of :data:`FORBIDDEN`."""
    for node in program.graph.nodes:
        target = node.target
        if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
            continue
        operator = target.overloadpacket.__name__
        reason = FORBIDDEN.get(operator)
        if operator.lstrip("_").startswith("linalg_") and operator not in HARMLESS_LINALG:
            reason = "a matrix decomposition or solve has no ONNX operator"
        if reason is not None:
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            name = stack[-1][0].removeprefix("L['self'].") if stack else ""
            raise PoanError(f"cannot export {name or 'the network'}: it calls {operator}: {reason}")
