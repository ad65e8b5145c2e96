"""Arrays as source and sink."""

from typing import Any

import numpy as np
import pytest

from poan_runtime.errors import PoanError
from poan_runtime.images.source import ArraySink, ArraySource
from tests.runtime.images.conformance import check_sink, check_source


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3), (5, 4, 3, 2), (3, 4, 2, 2, 3)])
def test_an_array_keeps_the_contract_of_a_source(shape: tuple[int, ...]) -> None:
    data = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    check_source(ArraySource(data, np.eye(4)), data)


def test_an_array_keeps_the_contract_of_a_sink() -> None:
    made: list[ArraySink] = []

    def make() -> ArraySink:
        made.append(ArraySink())
        return made[-1]

    def read() -> Any:
        return vars(made[-1]).get("data")

    check_sink(make, read)


@pytest.mark.parametrize("shape", [(4,), (4, 0, 6), (2,) * 8])
def test_an_array_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(PoanError, match="2 to 7 dimensions"):
        ArraySource(np.zeros(shape), np.eye(4))
