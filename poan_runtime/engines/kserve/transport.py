"""What a connection to one server must do, and the two ways in which it fails."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Tiles = NDArray[np.float32]


class Refused(Exception):
    """The server answered, and would answer the same again: one line of its own."""


class Unreachable(Exception):
    """No answer, or one that says "later": another try may succeed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Served:
    """What a server says about a model: its ports, and the parameters of its configuration."""

    version: str
    input_name: str
    input_shape: tuple[int, ...]
    output_name: str
    output_shape: tuple[int, ...]
    parameters: Mapping[str, str]


class Transport(Protocol):
    """One server, used by several threads at once."""

    def describe(self) -> Served:
        """Ask for the model, which must be ready. Raises Refused, Unreachable."""
        ...

    def infer(self, batch: Tiles) -> Tiles:
        """The answer to a batch (N, 1, h, w). Raises Refused, Unreachable."""
        ...

    def close(self) -> None:
        """Close the connections; a second call does nothing."""
        ...


def newest(versions: Any, told: str) -> str:
    """The highest of a model's versions; Refused where there is none.

    >>> newest(["9", "10"], "m")
    '10'
    """
    numbers = [str(version) for version in versions or () if str(version).isdecimal()]
    if not numbers:
        raise Refused(f"{told}: the server has no version of it")
    return max(numbers, key=int)
