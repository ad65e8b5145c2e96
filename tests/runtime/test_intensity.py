"""The intensity unit, in memory and streamed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from poan_runtime.intensity import intensity_unit, streamed_intensity_unit

floats = hnp.arrays(np.float32, st.integers(0, 60), elements=st.floats(width=32))
few_bits = hnp.arrays(np.float32, st.integers(0, 300), elements=st.sampled_from([0, 1, 2, -2, 7]))


@given(floats | few_bits, st.integers(1, 50), st.sampled_from([99.9, 50.0, 100.0, 0.1]))
def test_the_streamed_scale_is_the_very_same_number(
    values: np.ndarray, part: int, percentile: float
) -> None:
    parts = [values[i : i + part] for i in range(0, len(values), part)]
    streamed = streamed_intensity_unit(lambda: parts, percentile)
    assert streamed.unit == intensity_unit(values, percentile)
    assert streamed.not_finite == np.count_nonzero(~np.isfinite(values))


def test_the_scale_is_the_order_statistic_of_the_non_zero_magnitudes() -> None:
    values = np.concatenate([np.zeros(5000), np.arange(1, 2001), [np.nan, -np.inf]])
    assert intensity_unit(-values) == 1998  # 1998 of the 2000 magnitudes do not exceed it
    assert intensity_unit(np.append(values, 3000)) == 1999  # 1998 of 2001 are too few


def test_values_with_the_upper_bits_of_zero_are_told_from_zero() -> None:
    tiny = np.float32([0, 0, 0, 1e-44, 2e-44, 3e-44])
    assert streamed_intensity_unit(lambda: [tiny], 50.0).unit == tiny[4]


def test_values_beyond_float32_count_as_not_finite() -> None:
    assert intensity_unit(np.array([1e300, 2.0, -3.0])) == 3.0


def test_a_volume_of_zeros_has_scale_one() -> None:
    assert intensity_unit(np.zeros((3, 3))) == 1.0
    assert streamed_intensity_unit(lambda: [np.zeros(9, np.float32)]).unit == 1.0


@given(hnp.arrays(np.int16, 40, elements=st.integers(-3000, 3000)), st.sampled_from([0.25, 8.0]))
def test_the_scale_follows_the_values(values: np.ndarray, factor: float) -> None:
    if values.any():
        assert intensity_unit(values * factor) == factor * intensity_unit(values)


@pytest.mark.parametrize("percentile", [0.0, 100.1, float("nan")])
def test_a_percentile_outside_of_its_range_is_refused(percentile: float) -> None:
    with pytest.raises(ValueError, match="percentile"):
        intensity_unit(np.ones(3), percentile)
