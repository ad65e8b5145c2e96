"""The stand-in for a device does what every engine does, and is busy as long as it says."""

import itertools

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
