"""Latency samples in seven figures."""

from collections.abc import Sequence

import numpy as np

FIGURES = ("min", "mean", "p50", "p90", "p95", "p99", "max")


def summarise(samples: Sequence[float], more: Sequence[float] = ()) -> dict[str, float]:
    """Min, mean, percentiles and max, in the unit of the samples; ``more`` percentiles besides.

    A percentile is the smallest sample that at least that share of all samples do not exceed,
    so that it is a time that was measured; p99 of few samples is their maximum.

    >>> summarise([4.0, 1.0, 2.0, 3.0])["p50"], summarise([4.0, 1.0, 2.0, 3.0])["p90"]
    (2.0, 4.0)
    """
    if not samples:
        raise ValueError("need at least one sample")
    values = np.asarray(samples, np.float64)
    figures = {"min": float(values.min()), "mean": float(values.mean())}
    for percent in (50, 90, 95, 99, *more):
        figures[f"p{percent:g}"] = float(np.percentile(values, percent, method="inverted_cdf"))
    return {**figures, "max": float(values.max())}


def ratios(first: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """How many times as long ``other`` takes as ``first``; both sampled in turn.

    ``of_medians`` compares the medians, ``median_of_pairs`` each round's two samples, which
    cancels what slows both (clocks, other programs).

    >>> ratios([1.0, 2.0, 4.0], [2.0, 4.0, 8.0])
    {'of_medians': 2.0, 'median_of_pairs': 2.0}
    """
    pairs = np.asarray(other, np.float64) / np.asarray(first, np.float64)
    return {
        "of_medians": float(np.median(other) / np.median(first)),
        "median_of_pairs": float(np.median(pairs)),
    }
