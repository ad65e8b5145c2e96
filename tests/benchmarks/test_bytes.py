"""Bytes that plans move, by the real builder's log: the limits that a change must not cross."""

import json

import pytest

pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")

from benchmarks.bytes import BATCH, RESULT, Row, measure, table, tiles_per_slice

MOST_DENSE = 6.2e9
"""Tile 60 has no level whose map of pairs is copied: 5.9 GB a batch of 8, where 64 has 8.7."""


def test_the_dense_form_stays_below_its_limit_for_slices_of_240() -> None:
    assert measure("dense", "box", 60).bytes_moved < MOST_DENSE


def test_the_default_stays_within_5_percent_of_the_figure_in_the_table() -> None:
    stored = [Row(**row) for row in json.loads(RESULT.read_text())]
    known = next(row for row in stored if (row.attention, row.tile) == ("default", 63))
    found = measure("default", "box", 63)
    assert found.bytes_moved == pytest.approx(known.bytes_moved, rel=0.05)


@pytest.mark.parametrize("side", [128, 144, 160, 192, 208, 240, 256, 320])
def test_tiles_of_60_are_as_many_as_tiles_of_64(side: int) -> None:
    """So that a multiple of 20 costs nothing: no size in use needs more of the smaller ones."""
    assert tiles_per_slice(60, side) == tiles_per_slice(64, side)


def test_the_table_says_what_a_slice_moves() -> None:
    row = Row(
        attention="dense",
        form="box",
        tile=60,
        bytes_moved=8_000_000_000,
        kernels=7,
        activation_bytes=5_000_000,
        tiles_per_slice=25,
    )
    assert row.mb_per_slice == 8000 / BATCH * 25
    assert "| dense | box | 60 | 8.00 | 7 | 5 | 25 | 25.00 |" in table([row])
