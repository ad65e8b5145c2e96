"""A model loaded into an engine, and the settings with which it runs."""

import dataclasses
import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Literal

from poan_runtime.engines.backend import Backend, EngineOptions, OpenedBackend, open_backend
from poan_runtime.engines.kserve.address import is_address
from poan_runtime.engines.which_file import find_runnable, plans_of_other_tiles
from poan_runtime.errors import PoanError
from poan_runtime.geometry import Geometry
from poan_runtime.models.find import Model, Trust
from poan_runtime.tiles.ensemble import SelfEnsemble
from poan_runtime.tiles.layout import Layout, lay_out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How to run; None means the manifest's or the planner's choice. Lengths in LR voxels.

    ``axis`` is the slice axis: 0, 1, 2, ``sagittal``, ``coronal`` or ``axial``. ``halo`` is the
    border of a tile that is thrown away, ``overlap`` what neighbours blend, ``batch`` tiles per
    call. ``skip`` runs one of all tiles that hold the same constant, and interpolates those that
    show nothing but air (`poan_runtime.as_measured.air_in`). ``self_ensemble`` takes
    the mean over eight flips and rotations; ``uncertainty`` gives their standard deviation
    beside it, in the scan's unit. ``threads`` compress the output. ``native`` crops the
    spectrum of a scan that its scanner zero-filled (``on``); ``auto`` does so for a model
    trained on scanner-like LR, and takes the mean with the stored matrix's answer where that is
    better (`poan_runtime.both_matrices`). ``keep_measured`` puts LR's own band back into SR, or
    a share of it from 0 to 1 (``auto``: as the manifest says). ``like_input`` brings a result
    from the native matrix to ``scale`` times the stored one, by filling its spectrum.
    ``keep_negative`` leaves voxels below zero as they are where the volume has none itself; a
    network rings there, a magnitude image does not, so by default they become 0.
    `Network.layout` refuses what does not fit the model's tile or batch with a PoanError.

    >>> Settings(axis="axial", self_ensemble=True).skip
    True
    """

    axis: str | int | None = None
    halo: int | None = None
    overlap: int | None = None
    batch: int | None = None
    skip: bool = True
    self_ensemble: bool = False
    uncertainty: bool = False
    threads: int | None = None
    native: Literal["auto", "on", "off"] = "auto"
    keep_measured: Literal["auto", "on", "off"] | float = "auto"
    like_input: bool = False
    keep_negative: bool = False


SPEED_ALONE = ("threads", "batch")
"""Settings that decide no voxel."""


class OtherTiles:
    """Plans of the same network for other tiles; each is loaded when a scan first takes it."""

    def __init__(self, models: tuple[Model, ...], options: EngineOptions) -> None:
        self.models = models
        self._options = options
        self._loaded: dict[int, Network] = {}
        self._lock = threading.Lock()

    def network(self, model: Model) -> "Network":
        """The network of one of the models."""
        with self._lock:
            tile = model.manifest.tile
            if tile not in self._loaded:
                self._loaded[tile] = _loaded(model, self._options, since=time.perf_counter())
            return self._loaded[tile]

    def close(self) -> None:
        """Free what their engines hold."""
        for network in self._loaded.values():
            network.close()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """A model that is ready to run; a context manager that closes its engine.

    ``load_s`` is the seconds that loading took. Made by `load_network`::

        with poan_runtime.load_network("t2_x2") as network:
            for scan in scans:
                poan_runtime.upscale_file(scan, scan.with_suffix(".sr.nii.gz"), network)
    """

    model: Model
    opened: OpenedBackend
    load_s: float
    process: int = dataclasses.field(default_factory=os.getpid)
    """The process that loaded it: an engine's threads do not follow a fork."""
    others: OtherTiles = dataclasses.field(default_factory=lambda: OtherTiles((), EngineOptions()))
    taken: str = ""
    """Why `for_slices` took this tile, where there was a choice."""

    def __enter__(self) -> "Network":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free what the engines hold; the network cannot run any more."""
        self.opened.backend.close()
        self.others.close()

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user must know about model and engine, one line each."""
        return (*self.model.notices, *self.opened.notices)

    def backend(self, settings: Settings) -> Backend:
        """The engine, wrapped in the self-ensemble if wanted.

        Raises PoanError in a process that was forked off after loading.
        """
        if os.getpid() != self.process:
            raise PoanError(
                f"{self.model.manifest.name}: loaded before this process was forked off, and an "
                "engine's threads do not follow; load the network in the new process"
            )
        if not (settings.self_ensemble or settings.uncertainty):
            return self.opened.backend
        manifest, spread = self.model.manifest, settings.uncertainty
        return SelfEnsemble(self.opened.backend, manifest.scale, manifest.grid, spread=spread)

    def layout(
        self, geometry: Geometry, settings: Settings, plane: tuple[int, int] | None = None
    ) -> Layout:
        """The tiles of the geometry's slices.

        ``plane`` are rows and columns of the slices, where these are on another matrix. Raises
        PoanError on settings that do not fit the model.
        """
        return layout_of(self.model, geometry, settings, plane)

    def for_slices(self, geometry: Geometry, settings: Settings) -> "Network":
        """The network of the tile that moves fewest bytes for the geometry's slices.

        Bytes are the tiles of a slice times what the builder's log says of one. This network runs
        where there is no other, where a log told no bytes, and in a tie. Raises PoanError where
        the one that is taken cannot be loaded.
        """
        models = (self.model, *self.others.models)
        moved = [bytes_per_slice(model, geometry, settings) for model in models]
        if len(models) == 1 or moved[0] is None:
            return self
        known = [(bytes_, index) for index, bytes_ in enumerate(moved) if bytes_ is not None]
        _, best = min(known)
        taken = _in_words(models, known, best, geometry)
        network = self.others.network(models[best]) if best else self
        return dataclasses.replace(network, taken=taken)


def layout_of(
    model: Model, geometry: Geometry, settings: Settings, plane: tuple[int, int] | None = None
) -> Layout:
    """The tiles of the geometry's slices, or of slices of ``plane``; see `Network.layout`."""
    manifest, engine = model.manifest, model.file.engine
    halo = manifest.halo if settings.halo is None else settings.halo
    overlap = manifest.overlap if settings.overlap is None else settings.overlap
    if halo < 0 or overlap < 0 or 2 * halo + overlap >= manifest.tile:
        raise PoanError(
            f"--halo, --overlap: expected 2 * halo + overlap below the tile of "
            f"{manifest.tile}, got {halo} and {overlap}"
        )
    accepted = manifest.batch
    if settings.batch is not None and not accepted.min <= settings.batch <= accepted.max:
        raise PoanError(
            f"--batch: this model takes {accepted.min} to {accepted.max}, got {settings.batch}"
        )
    full_batch = None if engine is None else engine.profile.opt  # a plan fills what is not full
    return lay_out(
        *(plane or geometry.plane),
        geometry.slices,
        tile=manifest.tile,
        scale=manifest.scale,
        halo=halo,
        overlap=overlap,
        batch=settings.batch or full_batch,
        best_batch=accepted.opt,
        most_batch=accepted.max,
        least_overlap=settings.overlap,
    )


def bytes_per_slice(model: Model, geometry: Geometry, settings: Settings) -> float | None:
    """What a plan's kernels read and write for one of the geometry's slices, weights apart.

    None where the builder's log did not tell, or where the settings do not fit the tile.
    """
    engine = model.file.engine
    moved = 0 if engine is None else engine.report.get("bytes_moved", 0)
    if engine is None or not moved:
        return None
    try:
        tiles = layout_of(model, geometry, settings).tiles_per_slice
    except PoanError:
        return None
    return float(tiles * moved / engine.profile.max)


def _in_words(
    models: tuple[Model, ...], moved: list[tuple[float, int]], best: int, geometry: Geometry
) -> str:
    """Which tile runs and what each moves."""
    each = ", ".join(
        f"{bytes_ / 1e9:.2f} GB a slice with tile {models[index].manifest.tile}"
        for bytes_, index in moved
    )
    height, width = geometry.plane
    return f"slices of {height} x {width} take tile {models[best].manifest.tile}: {each}"


def _loaded(model: Model, options: EngineOptions, *, since: float) -> Network:
    opened = open_backend(model, options)
    return Network(model=model, opened=opened, load_s=time.perf_counter() - since)


def load_network(
    name: str | Path,
    options: EngineOptions | None = None,
    trust: Trust | None = None,
    *,
    other_tiles: bool = True,
) -> Network:
    """Find, verify and load a model.

    ``name`` is a shipped model, a folder with a manifest, a model file (.onnx, .plan), or the
    address of a served one (``kserve://host:port/MODEL``); ``trust`` vouches for a bare .onnx.
    A folder's plans for other tiles are taken where they move fewer bytes, unless ``other_tiles``
    is false: see `Network.for_slices`.
    Raises PoanError where there is no such model, where its hash is not the manifest's, and
    where no engine runs it here.

    Example (runs if a model is shipped and an engine is installed)::

        with poan_runtime.load_network("t2_x2") as network:
            print(network.model.manifest.scale, network.opened.name)
    """
    start = time.perf_counter()
    options = options or EngineOptions()
    if is_address(name):
        from poan_runtime.engines.kserve.backend import connect

        model, opened = connect(str(name), options)
        return Network(model=model, opened=opened, load_s=time.perf_counter() - start)
    model = find_runnable(name, options, trust)
    if not other_tiles or Path(name).is_file():
        return _loaded(model, options, since=start)
    others, notices = plans_of_other_tiles(model, options)
    model = dataclasses.replace(model, notices=(*model.notices, *notices))
    first = _loaded(model, options, since=start)
    return dataclasses.replace(first, others=OtherTiles(others, options))
