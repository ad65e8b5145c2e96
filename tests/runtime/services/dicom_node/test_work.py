"""A series at a worker: the same images make the same bytes, and errors name no folder."""

import datetime
from pathlib import Path

import numpy as np
import pydicom
import pytest

from poan_runtime.engines.backend import EngineOptions
from poan_runtime.network import Network
from poan_runtime.services.dicom_node import work as module
from poan_runtime.services.dicom_node.config import Rule
from poan_runtime.services.dicom_node.work import Answer, How, Networks, Task, work
from tests.runtime.images.dicom.made import image, write

LAST = 1_500_000_000.7


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, ...]:
    """The files of a series of three images."""
    chance = np.random.default_rng(2)
    return tuple(
        write(
            image(k + 1, (0.0, 0.0, 4.0 * k), chance.integers(1, 900, (20, 18))),
            tmp_path / f"in/{k}.dcm",
        )
        for k in range(3)
    )


def answer(
    tmp_path: Path,
    files: tuple[Path, ...],
    model: Path,
    out: str,
    networks: Networks | None = None,
    **rule: str,
) -> Answer:
    how = How(
        rules=(Rule(model=str(model), targets=("a", "b"), **rule),),  # type: ignore[arg-type]
        options=EngineOptions(backend="onnxruntime"),
    )
    task = Task(
        series_uid="1", sender="S", files=files, out=tmp_path / out, root=tmp_path, arrived=LAST
    )
    return work(task, how, networks or Networks(how.options))


def test_the_same_images_make_the_same_bytes(
    tmp_path: Path, made: tuple[Path, ...], nearest_x2: Path
) -> None:
    first, again = (answer(tmp_path, made, nearest_x2, out) for out in ("x", "y"))
    assert [r.peer for r in first.results] == ["a", "b"]
    for one, two in zip(first.results[0].instances, again.results[0].instances, strict=True):
        assert one[:2] == two[:2]
        assert (tmp_path / one[2]).read_bytes() == (tmp_path / two[2]).read_bytes()
        told = pydicom.dcmread(tmp_path / one[2])
        last = datetime.datetime.fromtimestamp(int(LAST))
        assert told.ContentDate + told.ContentTime == last.strftime("%Y%m%d%H%M%S")
    fewer = answer(tmp_path, made[:2], nearest_x2, "z")
    assert {i[0] for i in fewer.results[0].instances}.isdisjoint(
        i[0] for i in first.results[0].instances
    )


def test_a_broken_file_fails_the_series_and_leaves_nothing(
    tmp_path: Path, made: tuple[Path, ...], nearest_x2: Path
) -> None:
    made[1].write_bytes(made[1].read_bytes()[:400])
    found = answer(tmp_path, made, nearest_x2, "x")
    assert found.error.startswith("1 of 3 files: 1.dcm: ")
    assert str(tmp_path) not in found.error
    assert not (tmp_path / "x").exists()


def test_no_rule_no_result(tmp_path: Path, made: tuple[Path, ...], nearest_x2: Path) -> None:
    found = answer(tmp_path, made, nearest_x2, "x", sender="ANOTHER")
    assert (found.results, found.error) == ((), "")


def test_a_model_is_loaded_once_for_all_series(
    tmp_path: Path,
    made: tuple[Path, ...],
    nearest_x2: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loads: list[str] = []
    whole = module.load_network

    def counted(name: str, options: EngineOptions) -> Network:
        loads.append(name)
        return whole(name, options)

    monkeypatch.setattr(module, "load_network", counted)
    networks = Networks(EngineOptions(backend="onnxruntime"))
    for out in ("x", "y"):
        assert answer(tmp_path, made, nearest_x2, out, networks=networks).error == ""
    assert loads == [str(nearest_x2)]
