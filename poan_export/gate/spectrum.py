"""The square-root iteration that a checkpoint needs, from the spectrum it shows.

The condition number of the covariance says how many steps an iteration takes, but not how much
of the error reaches z, nor what float32 allows. So candidates run on the covariances of real
tiles (and of the gate's hard cases, which bind as well), and the cheapest whose z stays within
a margin of float64 eigh is taken.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from poan_export.gate.parity import Array, Taps, norm_error
from poan_export.rewrite.pooling import BlockedPooling
from poan_export.rewrite.root import RootName, Scheme
from poan_export.trace.stages import pools_of
from poan_runtime.errors import PoanError
from poan_train.networks.covariance import CovariancePooling, covariance

MARGIN = 3e-4
"""Largest error of z at the choice: a third of the gate's tolerance of 1e-3."""
STEPS: Mapping[RootName, range] = {"newton-schulz": range(6, 31), "quintic": range(7, 13)}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The scheme, the largest condition number on real tiles, the largest error of z."""

    scheme: Scheme
    condition_seen: float
    error: float


def candidates(root: RootName | None = None) -> list[Scheme]:
    """Schemes, the cheapest first.

    >>> [f"{s.name} {s.iterations}" for s in candidates()[3:6]]
    ['newton-schulz 9', 'quintic 7', 'newton-schulz 10']
    """
    names: list[RootName] = ["newton-schulz", "quintic"] if root is None else [root]
    schemes = [Scheme(name=name, iterations=k) for name in names for k in STEPS[name]]
    return sorted(schemes, key=lambda s: (s.products, s.name))


def condition_number(features: Array, pool: CovariancePooling) -> float:
    """Largest condition number of the regularised covariances of features (N, C, h, w)."""
    sigma = covariance(torch.from_numpy(features.astype(np.float64)), pool.eps, pool.floor)
    values = torch.linalg.eigvalsh(sigma)  # (N, C), ascending
    return float((values[:, -1] / values[:, 0].clamp_min(torch.finfo(values.dtype).tiny)).max())


def root_error(scheme: Scheme, reference: Taps, float32: Taps, network: nn.Module) -> float:
    """Largest error of z over all NCABs and tiles, in float32 from float32 features."""
    worst = 0.0
    for stage, (features, pool) in pools_of(network).items():
        exported = BlockedPooling(copy.copy(pool))
        exported.power = scheme.module()
        with torch.inference_mode():
            z = exported(torch.from_numpy(float32[features])).numpy()
        for y, exact in zip(z, reference[stage], strict=True):
            worst = max(worst, norm_error(y, exact))
    return worst


def choose(
    network: nn.Module,
    reference: Taps,
    float32: Taps,
    real: int,
    schemes: Sequence[Scheme],
) -> Choice:
    """The first of ``schemes`` whose z meets :data:`MARGIN` on all tiles.

    ``real`` is the number of real tiles, which stand first. If no scheme meets the margin, the
    most accurate one is taken, and the gate decides.
    """
    pools = pools_of(network)
    if not pools:
        raise PoanError("no covariance pooling in this network: there is no root to choose")
    seen = max(condition_number(reference[f][:real], pool) for f, pool in pools.values())
    best: Choice | None = None
    for scheme in schemes:
        error = root_error(scheme, reference, float32, network)
        choice = Choice(scheme=scheme, condition_seen=seen, error=error)
        if error <= MARGIN:
            return choice
        if best is None or error < best.error:
            best = choice
    assert best is not None
    return best
