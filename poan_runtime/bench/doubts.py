"""What a reader of latencies must know: what bounds them, and whether they hold still."""

from collections.abc import Mapping, Sequence

import numpy as np

Samples = Mapping[str, Sequence[float]]
UNSTABLE = 0.05
"""Coefficient of variation above which figures of two runs are hard to compare."""


def variation(samples: Sequence[float]) -> float:
    """Coefficient of variation: the standard deviation as a share of the mean.

    >>> variation([1.0, 3.0])
    0.5
    """
    values = np.asarray(samples, np.float64)
    return float(values.std() / values.mean())


def doubts(samples: Samples) -> list[str]:
    """One line for each thing that spoils the figures; samples in milliseconds by stage.

    >>> doubts({"total": [5.0, 5.0], "enqueue": [4.0], "compute": [3.0], "h2d": [1], "d2h": [1]})
    ['enqueue-bound: the host takes 4.000 ms to launch what the GPU computes in 3.000 ms']
    """
    found = []
    medians = {stage: float(np.median(values)) for stage, values in samples.items() if values}
    compute = medians.get("compute")
    if compute is not None:
        if medians["enqueue"] >= compute:
            found.append(
                f"enqueue-bound: the host takes {medians['enqueue']:.3f} ms to launch what the GPU "
                f"computes in {compute:.3f} ms"
            )
        if (copies := medians["h2d"] + medians["d2h"]) >= compute:
            found.append(
                f"transfer-bound: copies take {copies:.3f} ms, the computation {compute:.3f} ms"
            )
    watched = "total" if compute is None else "compute"
    if (share := variation(samples[watched])) > UNSTABLE:
        found.append(
            f"unstable: {watched} varies by {share:.0%} of its mean; other work, or clocks that "
            "change"
        )
    return found


def roofline_percent(bytes_moved: int, compute_ms: float, gb_per_s: float) -> float:
    """Share of the memory bandwidth that a batch uses while it computes, in percent.

    >>> roofline_percent(6_000_000_000, 4.0, 3000.0)
    50.0
    """
    return 100 * bytes_moved / (compute_ms / 1e3) / (gb_per_s * 1e9)
