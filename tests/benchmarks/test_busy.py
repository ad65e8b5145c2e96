"""The stand-in for a device does what every engine does, and is busy as long as it says."""

import itertools
import time

import numpy as np
import pytest

from benchmarks.busy import TILE, SlowDevice
from tests.runtime.engines.conformance import check_backend


def test_the_stand_in_does_what_every_engine_does() -> None:
    check_backend(SlowDevice(0.1, 2), tile=TILE, scale=2)


def test_the_stand_in_is_busy_for_each_batch_in_turn() -> None:
    device = SlowDevice(1.0, 2)
    check_backend(device, tile=TILE, scale=2)
    spans = device.spans
    assert len(spans) == 6  # what the suite runs and starts
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
    assert device.busy_s() == 6 * 1e-3


def test_a_batch_keeps_the_stand_in_busy_for_as_long_as_was_said() -> None:
    device = SlowDevice(2.0, 2)
    device.run(np.zeros((1, 1, TILE, TILE), np.float32))
    ((begin, end),) = device.spans
    assert end - begin == pytest.approx(2e-3)  # rounding of float64 on the clock
    assert time.perf_counter() >= end
