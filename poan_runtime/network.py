"""A model loaded into an engine, and the settings with which it runs."""

import dataclasses
import time
from pathlib import Path

from poan_runtime.engines.backend import Backend, BackendOptions, OpenedBackend, open_backend
from poan_runtime.engines.which_file import find_runnable
from poan_runtime.errors import PoanError
from poan_runtime.models.find import Model, Trust
from poan_runtime.tiles.ensemble import SelfEnsemble
from poan_runtime.tiles.layout import Plan, plan_slices


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How to run; None means the manifest's or the planner's choice. Lengths in LR voxels."""

    axis: str | int | None = None
    halo: int | None = None
    overlap: int | None = None
    batch: int | None = None
    skip: bool = True
    self_ensemble: bool = False
    threads: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """A model that is ready to run."""

    model: Model
    opened: OpenedBackend
    load_s: float

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user must know about model and backend."""
        return (*self.model.notices, *self.opened.notices)

    def backend(self, settings: Settings) -> Backend:
        """The backend, wrapped in the self-ensemble if wanted."""
        if not settings.self_ensemble:
            return self.opened.backend
        manifest = self.model.manifest
        return SelfEnsemble(self.opened.backend, manifest.scale, manifest.grid)

    def plan(self, height: int, width: int, slices: int, settings: Settings) -> Plan:
        """The plan for slices of that size; settings that do not fit the model are refused."""
        manifest = self.model.manifest
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
        return plan_slices(
            height,
            width,
            slices,
            tile=manifest.tile,
            scale=manifest.scale,
            halo=halo,
            overlap=overlap,
            batch=settings.batch,
            best_batch=accepted.opt,
            most_batch=accepted.max,
            least_overlap=settings.overlap,
        )


def load_network(
    name: str | Path, options: BackendOptions | None = None, trust: Trust | None = None
) -> Network:
    """Find, verify and load a model. ``name`` as for `find_runnable`."""
    start = time.perf_counter()
    options = options or BackendOptions()
    model = find_runnable(name, options, trust)
    opened = open_backend(model, options)
    return Network(model=model, opened=opened, load_s=time.perf_counter() - start)
