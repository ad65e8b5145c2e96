"""A tile counts as left out only among tiles that are air."""

import numpy as np

from benchmarks.air import alone


def test_a_tile_beside_one_that_is_not_air_runs() -> None:
    air = np.ones((1, 4, 5), bool)
    air[0, 1, 1] = False
    assert alone(air)[0].tolist() == [
        [False, False, False, True, True],
        [False, False, False, True, True],
        [False, False, False, True, True],
        [True, True, True, True, True],
    ]
