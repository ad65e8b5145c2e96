"""Input and output of an engine: a stand-in tells them in the real library's own terms."""

from pathlib import Path
from typing import Any

import pytest

from poan_runtime.engines.tensorrt.library import load_library
from poan_runtime.engines.tensorrt.ports import Ports, find_ports
from poan_runtime.errors import PoanError
from poan_runtime.models.find import find_model
from tests.tiny.graphs import SCALE, TILE

trt = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
FINE = SCALE * TILE


class Engine:
    """An engine built for batches of two."""

    num_io_tensors = 2
    dtype = trt.DataType.FLOAT

    def __init__(self, names: tuple[str, str] = ("lr", "sr")) -> None:
        self.names = names

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> Any:
        modes = trt.TensorIOMode
        return modes.INPUT if name == self.names[0] else modes.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        side = TILE if name == self.names[0] else FINE
        return (-1, 1, side, side)

    def get_tensor_dtype(self, name: str) -> Any:
        return self.dtype

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(batch, 1, TILE, TILE) for batch in (1, 2, 4)]


def test_a_batch_is_the_one_that_the_engine_was_built_for(folder: Path) -> None:
    model = find_model(folder / "engine.plan")
    assert find_ports(model, load_library("tensorrt-rtx"), Engine()) == Ports(
        input="lr", output="sr", batch=2, row_in=(1, TILE, TILE), row_out=(1, FINE, FINE)
    )


def test_an_engine_with_other_tensors_or_of_another_type_is_refused(folder: Path) -> None:
    model, library = find_model(folder / "engine.plan"), load_library("tensorrt-rtx")
    with pytest.raises(PoanError, match=r"expected tensors \[\['lr'\], \['sr'\]\], got"):
        find_ports(model, library, Engine(("image", "sr")))
    half = Engine()
    half.dtype = trt.DataType.HALF
    with pytest.raises(PoanError, match="expected float32 for 'lr'; export it again"):
        find_ports(model, library, half)
