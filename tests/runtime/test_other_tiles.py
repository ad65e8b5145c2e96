"""Plans for two tiles in one export: each scan takes the one that moves fewer bytes.

The cards, plans' answers and builder's figures are stand-ins; folders and manifests are real.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx", reason="the folder under test holds a real plan")

from poan_runtime import network as networks
from poan_runtime.commands import run as cli
from poan_runtime.engines.backend import EngineOptions, OpenedBackend
from poan_runtime.errors import PoanError
from poan_runtime.geometry import Geometry
from poan_runtime.images.source import ArraySink
from poan_runtime.models.find import Model
from poan_runtime.models.manifest import parse_manifest, read_manifest
from poan_runtime.network import Network, Settings, load_network
from poan_runtime.report.explain import RepeatVoxels
from poan_runtime.report.provenance import provenance_of
from poan_runtime.super_resolve import upscale_file
from tests.tiny.graphs import SCALE, TILE

cuda = pytest.importorskip("poan_runtime.engines.tensorrt.cuda", reason="needs cuda-python")
OTHER = 20
MOVED = {TILE: 400, OTHER: 600}
"""Bytes that each stand-in plan moves for a batch of four."""
CARD = {"index": 0, "name": "a card", "compute_capability": "8.6", "memory_bytes": 1 << 33}
Tiles = Callable[..., Path]


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def set_tile(folder: Path, tile: int) -> None:
    def change(document: dict[str, Any]) -> None:
        plan = document["files"][2]
        plan["engine"]["report"]["bytes_moved"] = MOVED[tile]
        plan["parity"]["verdict"] = "pass"
        document["tile"] = tile

    edit(folder, change)


class Closed(RepeatVoxels):
    """Counts those that are open, by tile."""

    open: ClassVar[list[int]] = []

    def __init__(self, tile: int) -> None:
        super().__init__(SCALE)
        self.tile = tile
        Closed.open.append(tile)

    def close(self) -> None:
        Closed.open.remove(self.tile)


@pytest.fixture
def opened_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Tiles of the plans that were loaded, in their order; all must be closed in the end."""
    found: list[int] = []

    def opens(model: Model, options: EngineOptions) -> OpenedBackend:
        found.append(model.manifest.tile)
        return OpenedBackend(
            backend=Closed(model.manifest.tile), name="rtx", device="cpu", version="1", reason=""
        )

    monkeypatch.setattr(networks, "open_backend", opens)
    monkeypatch.setattr(cuda, "find_gpu", lambda index=None: cuda.Gpu(**CARD))
    yield found
    assert Closed.open == []


@pytest.fixture
def two_tiles(folder: Path) -> Path:
    """The export of conftest.py with a second one in it, both with plans that passed."""
    set_tile(folder, TILE)
    shutil.copytree(folder, folder / "tile20")
    set_tile(folder / "tile20", OTHER)
    edit(folder, lambda m: m.update(other_tiles=[{"folder": "tile20", "tile": OTHER}]))
    return folder


def slices(rows: int, columns: int) -> Geometry:
    return Geometry.derive((rows, columns, 3), np.eye(4), scale=SCALE, grid="centre", axis=2)


@pytest.mark.parametrize(
    ("rows", "columns", "tile"),
    [
        (16, 16, TILE),  # one tile of either: 100 and 150 bytes
        (20, 16, OTHER),  # two of 16, one of 20: 200 and 150
        (20, 20, OTHER),  # four and one
        (36, 20, OTHER),  # six and two
        (44, 16, TILE),  # four and three: 400 and 450
    ],
)
def test_a_slice_takes_the_tile_that_moves_fewest_bytes(
    rows: int, columns: int, tile: int, two_tiles: Path, opened_tiles: list[int]
) -> None:
    with load_network(two_tiles) as network:
        chosen = network.for_slices(slices(rows, columns), Settings())
        assert chosen.model.manifest.tile == tile
        assert chosen.layout(slices(rows, columns), Settings()).tile == tile
        assert chosen.opened.backend is chosen.backend(Settings())
        assert f"slices of {rows} x {columns} take tile {tile}: " in chosen.taken


def test_the_other_plan_is_loaded_when_a_scan_first_takes_it_and_once(
    two_tiles: Path, opened_tiles: list[int]
) -> None:
    with load_network(two_tiles) as network:
        network.for_slices(slices(16, 16), Settings())
        assert opened_tiles == [TILE]
        for _ in range(2):
            network.for_slices(slices(20, 20), Settings())
        assert opened_tiles == [TILE, OTHER]


@pytest.mark.parametrize("moved", [{}, {"bytes_moved": 0}])
@pytest.mark.parametrize("which", [".", "tile20"])
def test_without_the_figure_of_a_log_there_is_no_choice(
    moved: dict[str, int], which: str, two_tiles: Path, opened_tiles: list[int]
) -> None:
    edit(two_tiles / which, lambda m: m["files"][2]["engine"].update(report=moved))
    with load_network(two_tiles) as network:
        assert network.for_slices(slices(20, 20), Settings()).model.manifest.tile == TILE


def test_a_tie_stays_with_the_first_tile(two_tiles: Path, opened_tiles: list[int]) -> None:
    edit(two_tiles / "tile20", lambda m: m["files"][2]["engine"]["report"].update(bytes_moved=1600))
    with load_network(two_tiles) as network:
        assert network.for_slices(slices(20, 20), Settings()).model.manifest.tile == TILE


def test_an_overlap_that_the_other_tile_has_no_room_for_leaves_the_first(
    two_tiles: Path, opened_tiles: list[int]
) -> None:
    set_tile(two_tiles, OTHER)
    set_tile(two_tiles / "tile20", TILE)
    edit(two_tiles, lambda m: m.update(other_tiles=[{"folder": "tile20", "tile": TILE}]))
    with load_network(two_tiles) as network:
        wide = Settings(overlap=TILE)
        assert network.for_slices(slices(16, 16), Settings()).model.manifest.tile == TILE
        assert network.for_slices(slices(16, 16), wide).model.manifest.tile == OTHER


def test_poan_run_says_which_tile_a_scan_took_and_why(
    two_tiles: Path, scan: Path, opened_tiles: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """20 x 18 x 3."""
    report = scan.with_name("report.json")
    assert cli.main([str(two_tiles), str(scan), "--report", str(report)]) == 0
    said = "slices of 20 x 18 take tile 20: 0.00 GB a slice with tile 16, 0.00 GB a slice with"
    assert f"scan.nii.gz: {said} tile 20" in capsys.readouterr().out
    plan = json.loads(report.read_text())["scans"][0]["plan"]
    assert (plan["tile"], plan["tiles_per_slice"]) == (OTHER, 1)
    assert plan["file"] == str(two_tiles / "tile20" / "engine.plan")
    assert plan["sha256"] == read_manifest(two_tiles / "tile20").files[2].sha256
    lr = np.asarray(nib.load(scan).dataobj)
    fine = np.asarray(nib.load(scan.with_name("scan_desc-sr.nii.gz")).dataobj)
    assert fine.shape == (40, 36, 3)
    assert np.corrcoef(fine[::2, ::2].ravel(), lr.ravel())[0, 1] > 0.9


def test_a_derived_image_names_the_plan_that_made_it(
    two_tiles: Path, scan: Path, opened_tiles: list[int]
) -> None:
    named: list[Network] = []

    def opens(network: Network) -> ArraySink:
        named.append(network)
        return ArraySink()

    with load_network(two_tiles) as network:
        outcome = upscale_file(scan, opens, network)
    assert outcome.network is named[0]
    assert named[0].model.path == two_tiles / "tile20" / "engine.plan"
    other = dataclasses.replace(named[0].model.file, sha256="f" * 64)
    model = dataclasses.replace(named[0].model, file=other)
    runs = dataclasses.replace(named[0], model=model)
    assert provenance_of(runs, Settings()).model_sha256 == "f" * 64


def test_a_plan_that_is_named_and_an_onnx_file_run_as_they_are(
    two_tiles: Path, opened_tiles: list[int]
) -> None:
    named: list[tuple[Path, EngineOptions, bool]] = [
        (two_tiles / "engine.plan", EngineOptions(), True),
        (two_tiles, EngineOptions(device="cpu"), True),
        (two_tiles, EngineOptions(), False),
    ]
    for name, options, other_tiles in named:
        with load_network(name, options, other_tiles=other_tiles) as network:
            assert network.for_slices(slices(20, 20), Settings()).model.manifest.tile == TILE


def test_another_tiles_plan_that_is_not_proven_is_not_taken_and_a_notice_says_so(
    two_tiles: Path, opened_tiles: list[int]
) -> None:
    edit(two_tiles / "tile20", lambda m: m["files"][2]["parity"].update(verdict="pending"))
    with load_network(two_tiles) as network:
        assert network.for_slices(slices(20, 20), Settings()).model.manifest.tile == TILE
        (notice,) = network.notices
    assert notice.startswith("tile20: engine.plan: not yet compared with PyTorch on a card")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tile": 24}, "expected an export for tile 20, got 24"),
        ({"name": "another"}, "expected the network of tiny_x2, its name differs"),
        ({"network": {"arch": "tiny", "parameters": 2, "config": {}}}, "its network differs"),
        ({"grid": "kspace"}, "its grid differs"),
        ({"air_k": 3.0}, "its air_k differs"),
    ],
)
def test_a_folder_that_is_not_the_other_tile_of_this_network_is_refused(
    change: dict[str, Any], said: str, two_tiles: Path, opened_tiles: list[int]
) -> None:
    edit(two_tiles / "tile20", lambda m: m.update(change))
    with pytest.raises(PoanError, match=said):
        load_network(two_tiles)


def test_a_listed_folder_that_is_not_there_is_named(
    two_tiles: Path, opened_tiles: list[int]
) -> None:
    shutil.rmtree(two_tiles / "tile20")
    with pytest.raises(PoanError, match="tile20: no such file or folder"):
        load_network(two_tiles)


@pytest.mark.parametrize("folder_name", ["..", "a/b", ""])
def test_a_manifest_names_no_folder_elsewhere(folder_name: str, two_tiles: Path) -> None:
    document = json.loads((two_tiles / "manifest.json").read_text())
    document["other_tiles"][0]["folder"] = folder_name
    with pytest.raises(PoanError, match=r"other_tiles\[0\].folder: expected a plain file name"):
        parse_manifest(document)


def test_two_exports_of_one_tile_are_refused(two_tiles: Path) -> None:
    document = json.loads((two_tiles / "manifest.json").read_text())
    document["other_tiles"][0]["tile"] = TILE
    with pytest.raises(PoanError, match="other_tiles: expected tiles that differ, got 16, 16"):
        parse_manifest(document)
