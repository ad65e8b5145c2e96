"""Bytes that plans move, by the real builder's log: the limits that a change must not cross."""

import json

import pytest

pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")

from benchmarks.bytes import (
    BATCH,
    FIRST,
    README,
    RESULT,
    SIDES,
    Row,
    by_size,
    by_tile,
    kind,
    measure,
    saved_by,
    second_tile,
    table,
    tiles_per_slice,
)
from poan_train import networks

MOST_DENSE = 6.2e9
"""Tile 60 has no level whose map of pairs is copied: 5.9 GB a batch of 8, where 64 has 8.7."""


@pytest.mark.slow
def test_the_dense_form_stays_below_its_limit_for_slices_of_240() -> None:
    assert measure("dense", "box", 60).bytes_moved < MOST_DENSE


@pytest.mark.slow
def test_the_default_stays_within_5_percent_of_the_figure_in_the_table() -> None:
    stored = [Row(**row) for row in json.loads(RESULT.read_text())]
    tile = networks.ARCHITECTURES["poan"].tile
    known = next(r for r in stored if kind(r) == ("default", "box", "default") and r.tile == tile)
    found = measure("default", "box", tile)
    assert found.bytes_moved == pytest.approx(known.bytes_moved, rel=0.05)


def test_the_default_tile_moves_least_for_slices_of_120_and_240() -> None:
    """Half of 240, and 240: what the papers' data and most brain scans have."""
    rows = [Row(**row) for row in json.loads(RESULT.read_text())]
    searched = [row for row in rows if kind(row) == ("default", "box", "default")]
    for side in (120, 240):
        least = min(searched, key=lambda row: row.mb_per_slice(side))
        assert least.tile == networks.ARCHITECTURES["poan"].tile


def test_the_table_in_the_readme_is_that_of_the_figures() -> None:
    rows = [Row(**row) for row in json.loads(RESULT.read_text())]
    text = README.read_text("utf-8")
    assert table(rows) in text
    assert by_size(rows) in text
    assert second_tile(rows) in text


def test_a_second_plan_pays_for_most_sizes() -> None:
    """Why there are exports of two tiles: 5 % would not have been worth their code."""
    rows = by_tile([Row(**row) for row in json.loads(RESULT.read_text())])
    tiles = {row.tile: row for row in rows}
    saved = {side: saved_by(tiles[60], tiles[FIRST], side) for side in SIDES}
    pays = [side for side, share in saved.items() if share > 0.05]
    assert pays == [128, 144, 160, 192, 208, 256, 320]
    assert saved[240] == 0  # the first plan stays there, and is no dearer for it


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
    )
    assert row.mb_per_slice(240) == 8000 / BATCH * 25
    assert "| dense | box | default | 60 | 8.00 | 7 | 5 | 25 | 25.00 |" in table([row])
