"""The three ways that the benchmark of air compares are what they are called."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.air import saved, skipping
from poan_runtime.network import load_network
from tests.runtime.signal.phantom import acquire, anatomy


def test_air_skips_more_than_constant_tiles_and_these_more_than_nothing(
    make_model: Callable[..., Path], make_scan: Callable[..., Path]
) -> None:
    data = np.moveaxis(acquire(anatomy((6, 96, 96)), (96, 96), sigma=2.0), 0, 2)
    data[:, :, 0] = 0
    scan = make_scan("s.nii", dtype="<f4", affine=np.diag([1.0, 1, 5, 1]), data=data)
    model = make_model(degradation={"method": "scanner"})
    with contextlib.closing(load_network(model)) as network:
        row = saved(scan, network, 4.5, rounds=1)
        assert skipping(network, "air", 4.5)[0].model.manifest.air_k == 4.5
    tiles = row["tiles_run"]
    assert tiles["all"] > tiles["constant"] > tiles["air"] > 0
    assert row["tiles_of_constant"] == tiles["air"] / tiles["constant"]
