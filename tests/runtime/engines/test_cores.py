"""One tile to each core: order, room for the next batch, and batches that are not filled."""

import math
import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from poan_runtime.engines import cores
from poan_runtime.engines.backend import Backend
from poan_runtime.engines.cores import TileByTile
from tests.runtime.engines.conformance import check_backend

Tiles = NDArray[np.float32]


def numbered(count: int) -> Tiles:
    """Tiles (count, 1, 4, 4), each full of its number."""
    return np.broadcast_to(
        np.arange(count, dtype=np.float32)[:, None, None, None], (count, 1, 4, 4)
    )


def test_answers_keep_the_order_of_their_tiles_and_no_engine_runs_two_at_once() -> None:
    busy = [threading.Lock(), threading.Lock()]

    def engine(lock: threading.Lock) -> "object":
        def run(tile: Tiles) -> Tiles:
            assert lock.acquire(blocking=False), "two tiles in one engine"
            try:
                return tile * 2
            finally:
                lock.release()

        return run

    backend = TileByTile([engine(lock) for lock in busy])  # type: ignore[misc]
    answer = backend.run(numbered(40))
    assert answer.shape == (40, 1, 4, 4)
    assert np.array_equal(answer[:, 0, 0, 0], 2 * np.arange(40))


def test_a_second_batch_begins_before_the_first_is_asked_for() -> None:
    second_began = threading.Event()

    def run(tile: Tiles) -> Tiles:
        if tile[0, 0, 0, 0] == 1:
            second_began.set()
        return tile

    backend = TileByTile([run])
    first = backend.start(numbered(1))
    second = backend.start(numbered(2)[1:])
    assert second_began.wait(10)
    assert (first()[0, 0, 0, 0], second()[0, 0, 0, 0]) == (0, 1)


def test_an_engines_error_reaches_the_caller_and_the_engine_stays_usable() -> None:
    def run(tile: Tiles) -> Tiles:
        if tile[0, 0, 0, 0] == 1:
            raise RuntimeError("tile 1")
        return tile

    backend = TileByTile([run])
    with pytest.raises(RuntimeError, match="tile 1"):
        backend.run(numbered(3))
    assert backend.run(numbered(1)).shape == (1, 1, 4, 4)


def test_a_batch_that_is_not_full_is_filled_only_where_tiles_share_a_batch() -> None:
    assert Backend.fills_batches
    assert not TileByTile([lambda tile: tile]).fills_batches


def test_it_keeps_the_contract_of_an_engine() -> None:
    check_backend(TileByTile([lambda tile: tile.repeat(2, 2).repeat(2, 3)] * 2), tile=4, scale=2)


def test_the_least_quota_of_the_cgroups_above_counts(tmp_path: Path) -> None:
    own, inner = tmp_path / "own", tmp_path / "slurm/job/task"
    inner.mkdir(parents=True)
    own.write_text("1:name=systemd:/x\n0::/slurm/job/task\n")
    assert cores._granted_cores(tmp_path, own) == math.inf
    (tmp_path / "slurm/cpu.max").write_text("800000 100000\n")
    (tmp_path / "slurm/job/cpu.max").write_text("150000 100000\n")
    (inner / "cpu.max").write_text("max 100000\n")
    assert cores._granted_cores(tmp_path, own) == 2
    own.write_text("0::/elsewhere\n")
    assert cores._granted_cores(tmp_path, own) == math.inf


def test_affinity_and_quota_both_bound_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda process: set(range(6)))
    monkeypatch.setattr(cores, "_granted_cores", lambda: 3)
    assert cores.usable_cores() == 3
    monkeypatch.setattr(cores, "_granted_cores", lambda: math.inf)
    assert cores.usable_cores() == 6
