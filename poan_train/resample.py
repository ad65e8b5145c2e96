"""Cubic resampling along one axis, as a matrix.

Every resize inside a network is ``R_h @ x @ R_w.T`` with constant matrices, so that training, ONNX
and engines compute the same numbers: runtimes disagree on the coordinates of a ``Resize`` node.
"""

from functools import lru_cache
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from poan_runtime import geometry

FloatArray: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Grid: TypeAlias = geometry.Grid
Edge: TypeAlias = Literal["clamp", "symmetric"]


def cubic_kernel(distance: FloatArray, a: float) -> FloatArray:
    """Keys' cubic convolution kernel (IEEE TASSP 29, 1981) at ``distance`` in samples.

    >>> cubic_kernel(np.array([0.0, 0.5, 1.0, 2.0]), a=-0.5).tolist()
    [1.0, 0.5625, 0.0, 0.0]
    """
    d = np.abs(distance)
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * (d**3 - 5 * d**2 + 8 * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def cubic_matrix(
    n_in: int,
    n_out: int,
    *,
    a: float = -0.5,
    antialias: bool = False,
    grid: Grid = "centre",
    edge: Edge = "clamp",
) -> FloatArray:
    """Matrix (n_out, n_in) that resamples a line; each row sums to one.

    Output sample k lies at input coordinate ``(k + 1/2) n_in / n_out - 1/2`` on the ``centre`` grid
    and at ``k n_in / n_out`` on the ``kspace`` grid. With ``antialias`` the kernel is stretched by
    the reduction, as MATLAB's imresize does. ``edge`` says which sample stands in for one outside:
    the nearest (``clamp``) or its mirror image (``symmetric``, MATLAB's rule).

    >>> cubic_matrix(4, 2, antialias=True).sum(axis=1).tolist()
    [1.0, 1.0]
    """
    if n_in < 1 or n_out < 1:
        raise ValueError(f"need at least one sample on both sides, got {n_in=}, {n_out=}")
    return _cubic_matrix(n_in, n_out, a, antialias, grid, edge)


@lru_cache(maxsize=256)
def _cubic_matrix(
    n_in: int, n_out: int, a: float, antialias: bool, grid: Grid, edge: Edge
) -> FloatArray:
    step = n_in / n_out
    stretch = max(step, 1.0) if antialias else 1.0
    shift = 0.5 if grid == "centre" else 0.0
    centre = (np.arange(n_out) + shift) * step - shift
    reach = int(np.ceil(2 * stretch))
    tap = np.floor(centre)[:, None] + np.arange(-reach, reach + 1)[None, :]  # (n_out, taps)
    weight = cubic_kernel((centre[:, None] - tap) / stretch, a)
    weight /= weight.sum(axis=1, keepdims=True)
    index = tap.astype(np.int64)
    if edge == "clamp":
        index = np.clip(index, 0, n_in - 1)
    else:
        index %= 2 * n_in
        index = np.where(index < n_in, index, 2 * n_in - 1 - index)
    matrix = np.zeros((n_out, n_in))
    np.add.at(matrix, (np.arange(n_out)[:, None], index), weight)
    matrix.setflags(write=False)
    return matrix


def resize(x: torch.Tensor, rows: FloatArray, columns: FloatArray) -> torch.Tensor:
    """``rows @ x @ columns.T`` for x (..., h, w), in x's dtype and on its device."""
    r = torch.tensor(rows, dtype=x.dtype, device=x.device)
    c = torch.tensor(columns.T, dtype=x.dtype, device=x.device)
    return r @ x @ c
