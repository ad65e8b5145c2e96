"""Several scans on a GPU: the next is read and the last written while one runs."""

import dataclasses
import threading
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from poan_runtime.commands import run as cli
from poan_runtime.commands import run_scans
from poan_runtime.commands.overlap import Turns, overlapped
from poan_runtime.engines.backend import Backend, Tiles
from poan_runtime.errors import PoanError


class Gpu(Backend):
    """Repeats voxels."""

    def run(self, batch: Tiles) -> Tiles:
        return batch.repeat(2, 2).repeat(2, 3)


@pytest.fixture
def on_gpu(nearest_x2: Path, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """poan-run as it runs on a GPU, with a stand-in for one."""
    real, gpu = run_scans.load_network, Gpu()

    def load(*arguments: Any) -> Any:
        network = real(*arguments)
        opened = dataclasses.replace(network.opened, backend=gpu, device="cuda:0 (a card)")
        return dataclasses.replace(network, opened=opened)

    monkeypatch.setattr(run_scans, "load_network", load)
    return gpu


def test_outputs_are_those_of_one_scan_after_the_other(
    nearest_x2: Path, make_scan: Any, on_gpu: Gpu, tmp_path: Path, capsys: Any
) -> None:
    scans = [make_scan(f"scan{i}.nii", shape=(20, 18, 5 + i)) for i in range(4)]
    together, alone = tmp_path / "together", tmp_path / "alone"
    for folder in (together, alone):
        folder.mkdir()
    assert cli.main([str(nearest_x2), *map(str, scans), "-o", str(together)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "tiles run" in line]
    for scan in scans:
        assert cli.main([str(nearest_x2), str(scan), "-o", str(alone / scan.name)]) == 0
        assert (together / f"{scan.stem}_desc-sr.nii.gz").is_file()
    made = [sorted(folder.iterdir()) for folder in (together, alone)]
    assert len(made[0]) == len(made[1]) == 4
    for first, second in zip(*made, strict=True):
        assert np.array_equal(nib.load(first).get_fdata(), nib.load(second).get_fdata())
    assert len(lines) == 4


def test_a_scan_that_fails_takes_no_other_with_it(
    nearest_x2: Path, make_scan: Any, on_gpu: Gpu, tmp_path: Path, capsys: Any
) -> None:
    scans = [make_scan(f"scan{i}.nii") for i in range(3)]
    scans[1].write_bytes(b"no scan")
    out = tmp_path / "out"
    out.mkdir()
    assert cli.main([str(nearest_x2), *map(str, scans), "-o", str(out)]) == 2
    names = sorted(path.name for path in out.iterdir())
    assert names == ["scan0_desc-sr.nii.gz", "scan2_desc-sr.nii.gz"]
    assert "scan1.nii" in capsys.readouterr().err


def test_an_interrupt_ends_the_scans_under_way_and_leaves_no_file(
    nearest_x2: Path, make_scan: Any, on_gpu: Gpu, tmp_path: Path, monkeypatch: Any
) -> None:
    scans = [make_scan(f"scan{i}.nii") for i in range(12)]
    out = tmp_path / "out"
    out.mkdir()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_scans, "say_outcome", interrupt)
    assert cli.main([str(nearest_x2), *map(str, scans), "-o", str(out)]) == 130
    assert not [path for path in out.iterdir() if "partial" in path.name]
    assert len(list(out.iterdir())) < len(scans)  # what was whole already stays


def test_the_next_scan_is_read_while_one_has_the_engine() -> None:
    read = threading.Event()

    def first(turns: Turns) -> dict[str, Any]:
        with turns.lock:
            return {"beside": read.wait(30)}

    def second(turns: Turns) -> dict[str, Any]:
        read.set()
        with turns.lock:
            return {}

    assert [done() for done in overlapped([first, second])] == [{"beside": True}, {}]


def test_poan_run_overlaps_scans_on_a_gpu(
    nearest_x2: Path, make_scan: Any, on_gpu: Gpu, monkeypatch: Any
) -> None:
    ran: list[str] = []
    real = run_scans.run_one

    def watched(*arguments: Any) -> dict[str, Any]:
        ran.append(threading.current_thread().name)
        return real(*arguments)

    monkeypatch.setattr(run_scans, "run_one", watched)
    scans = [make_scan(f"scan{i}.nii") for i in range(3)]
    assert cli.main([str(nearest_x2), *map(str, scans)]) == 0
    assert len(ran) == 3
    assert all(name.startswith("poan-scan") for name in ran)


def test_a_scan_under_way_ends_at_its_next_slab_once_the_command_is_told_to_stop() -> None:
    begun, ended = threading.Event(), threading.Event()

    def runs(turns: Turns) -> dict[str, Any]:
        begun.set()
        try:
            for _ in range(1000):
                turns.check()
                time.sleep(0.01)
        except PoanError:
            ended.set()
        return {}

    work = overlapped([lambda turns: {}, runs])
    assert next(work)() == {}
    assert begun.wait(30)
    work.close()
    assert ended.is_set()


def test_one_scan_at_a_time_has_the_engine_and_each_can_be_told_to_stop(
    nearest_x2: Path, make_scan: Any, on_gpu: Gpu, monkeypatch: Any
) -> None:
    """Each run is given the lock that they share, and looks whether it is to go on."""
    given: list[Any] = []
    stops: list[Any] = []
    real = run_scans.upscale_file

    def watched(*arguments: Any, **more: Any) -> Any:
        given.append(more["turn"])
        stops.extend(one for one in more["consumers"] if getattr(one, "__func__", 0) is Turns.check)
        return real(*arguments, **more)

    monkeypatch.setattr(run_scans, "upscale_file", watched)
    scans = [make_scan(f"scan{i}.nii") for i in range(3)]
    assert cli.main([str(nearest_x2), *map(str, scans)]) == 0
    assert len(given) == 3
    assert len({id(lock) for lock in given}) == 1
    assert len(stops) == 3
    assert isinstance(given[0], type(threading.Lock()))
