"""--vram: the largest tile and batch that fit, found by building."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from poan_export.plans.vram import CUDA_BYTES, MOST_BATCH, device_bytes, fit, parse_bytes
from poan_runtime.engines.tensorrt.build.plan import build_plan
from poan_runtime.errors import PoanError
from poan_runtime.models.manifest import BatchRange
from tests.tiny.graphs import SCALE, TILE, order_for, residual_graph

MIB = 2**20


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GiB", 4 * 2**30), ("512 MiB", 2**29), ("2gb", 2 * 10**9), ("100", 100), ("0.5KiB", 512)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "4 TiB", "-1GiB", "4GiB free"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(PoanError, match="--vram: expected a size such as 4GiB"):
        parse_bytes(text)


def test_device_memory_counts_weights_once_and_each_lane_with_its_tiles() -> None:
    report = {"activation_bytes": 1000, "weights_bytes": 70}
    # a float32 tile of 2x2 in and of 4x4 out, three of them, two lanes
    assert device_bytes(report, tile=2, scale=2, most=3) == CUDA_BYTES + 70 + 2 * (1000 + 240)


class Builder:
    """Activation memory as of a network with attention: the fourth power of the tile."""

    def __init__(self, fixed: int = 0) -> None:
        self.built: list[tuple[int, int]] = []
        self.fixed = fixed

    def __call__(self, tile: int, batch: BatchRange) -> Mapping[str, Any]:
        self.built.append((tile, batch.max))
        return {"activation_bytes": self.fixed + batch.max * tile**4, "weights_bytes": 10 * MIB}


def needs(tile: int, most: int, fixed: int = 0) -> int:
    return device_bytes(Builder(fixed)(tile, BatchRange(min=1, opt=1, max=most)), tile, 2, most)


@pytest.mark.parametrize("most", [1, 2, 3, 17, MOST_BATCH])
def test_the_largest_batch_of_the_largest_tile_that_fits_is_found(most: int) -> None:
    found = fit(needs(64, most), [32, 64], 2, Builder())
    assert (found.tile, found.batch.max) == (64, most)
    assert found.device_bytes == needs(64, most)


def test_one_byte_less_memory_gives_a_smaller_batch_and_then_a_smaller_tile() -> None:
    assert fit(needs(64, 5) - 1, [32, 64, 96], 2, Builder()).batch.max == 4
    assert fit(needs(64, 1) - 1, [32, 64, 96], 2, Builder()).tile == 32


def test_more_memory_than_a_batch_can_use_gives_the_largest_batch() -> None:
    found = fit(1 << 50, [32, 64, 96], 2, Builder())
    assert (found.tile, found.batch.max) == (96, MOST_BATCH)


def test_few_builds_are_needed_even_with_a_fixed_part() -> None:
    builder = Builder(fixed=300 * MIB)
    found = fit(needs(64, 20, 300 * MIB), [32, 64], 2, builder)
    assert found.batch.max == 20
    assert len(builder.built) <= 5


def test_memory_that_is_too_small_for_one_tile_says_how_much_is_needed() -> None:
    with pytest.raises(PoanError, match=r"--vram: a batch of one with tile 32 needs \d+ MiB, got"):
        fit(CUDA_BYTES, [32, 64], 2, Builder())


def test_a_log_that_tells_no_memory_is_refused() -> None:
    with pytest.raises(PoanError, match="does not tell memory"):
        device_bytes({"activation_bytes": None, "weights_bytes": None}, 16, 2, 1)


def test_real_builds_choose_a_batch_that_fits(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
    onnx.save(residual_graph(np.float16), tmp_path / "model.onnx")

    def build(tile: int, batch: BatchRange) -> Mapping[str, Any]:
        assert tile == TILE
        return build_plan(order_for(tmp_path / "model.onnx", batch=batch, sms=("86",))).report

    budget = CUDA_BYTES + 18 * MIB
    found = fit(budget, [TILE], SCALE, build)
    assert found.device_bytes <= budget
    larger = BatchRange(min=1, opt=1, max=2 * found.batch.max)
    if found.batch.max < MOST_BATCH:
        assert device_bytes(build(TILE, larger), TILE, SCALE, larger.max) > budget
