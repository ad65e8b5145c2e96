"""One scan of a cohort: skip it if it is done, else super-resolve it and say how it was made."""

import contextlib
import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from poan_runtime.as_measured import decided
from poan_runtime.batch.bids import BidsScan
from poan_runtime.batch.derivative import (
    WORK,
    Made,
    is_done,
    remove_remains,
    sidecar,
    sidecar_of,
    write_json,
)
from poan_runtime.engines.backend import EngineOptions
from poan_runtime.engines.kserve.address import is_address
from poan_runtime.engines.which_file import find_runnable
from poan_runtime.errors import PoanError
from poan_runtime.files import sha256_of
from poan_runtime.geometry import Geometry
from poan_runtime.models.find import Model
from poan_runtime.models.manifest import Manifest
from poan_runtime.network import Network, Settings, load_network
from poan_runtime.report.memory import peak_memory_bytes
from poan_runtime.report.preview import Preview
from poan_runtime.signal.measured import Change, difference
from poan_runtime.super_resolve import Pair, upscale_file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cohort:
    """What all scans of a run share. ``models`` names a model for each suffix."""

    dataset: Path
    out: Path
    models: Mapping[str, str]
    settings: Settings
    options: EngineOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a scan: ``done``, ``skipped`` (done before) or ``failed``."""

    stem: str
    state: str
    message: str = ""
    seconds: float = 0.0
    peak_bytes: int = 0


class Networks:
    """The models of a process, each found and loaded once, when the first scan needs it."""

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._models: dict[str, Model] = {}
        self._loaded: dict[str, Network] = {}

    def model(self, name: str) -> Model:
        """The file that would run, its hash checked; no engine is loaded for a local one."""
        if is_address(name):
            return self.network(name).model
        if name not in self._models:
            self._models[name] = find_runnable(name, self._options)
        return self._models[name]

    def network(self, name: str) -> Network:
        """The model in its engine."""
        if name not in self._loaded:
            # the record, which tells whether a scan is done, names one file for all scans
            self._loaded[name] = load_network(name, self._options, other_tiles=False)
        return self._loaded[name]


class Faithfulness:
    """How far SR departs from what the scanner measured, added up as the slabs go by."""

    def __init__(self) -> None:
        self.change = Change()

    def __call__(self, geometry: Geometry, pair: Pair) -> None:
        """Look at one slab; a `poan_runtime.super_resolve.Consumer`."""
        lr = np.nan_to_num(pair.lr, posinf=0.0, neginf=0.0)
        self.change.add(lr, difference(lr, pair.sr, geometry.scale))


def process(cohort: Cohort, scan: BidsScan, networks: Networks) -> Result:
    """Super-resolve a scan unless it is done; what the user can mend becomes a `Result` too."""
    start = time.perf_counter()
    try:
        made, image = plan(cohort, scan, networks)
        if is_done(image, made):
            return Result(stem=scan.stem, state="skipped")
        facts, document = _make(cohort, scan, made, image, networks)
        result = _result(scan, "done", "; ".join(facts["warnings"]), start)
        write_record(cohort.out, scan, result, facts)
        write_json(sidecar_of(image), document)  # last: from now on the scan is done
    except PoanError as error:
        result = _result(scan, "failed", str(error), start)
        with contextlib.suppress(PoanError):  # a full disk, say: the summary tells it all the same
            write_record(cohort.out, scan, result)
    return result


def _result(scan: BidsScan, state: str, message: str, start: float) -> Result:
    return Result(
        stem=scan.stem,
        state=state,
        message=message,
        seconds=time.perf_counter() - start,
        peak_bytes=peak_memory_bytes(),
    )


def plan(cohort: Cohort, scan: BidsScan, networks: Networks) -> tuple[Made, Path]:
    """What the result is made from and with, and where it goes."""
    if not scan.path.is_file():
        raise PoanError(f"{scan.path}: not there, only a link to it (git-annex: fetch it first)")
    name = cohort.models[scan.suffix]
    model = networks.model(name)
    made = Made(
        source_sha256=sha256_of(scan.path),
        model=model.manifest.name,
        model_sha256=model.file.sha256,
        settings=_deciding(cohort, model.manifest),
    )
    return made, cohort.out / f"{scan.derived(model.manifest.scale)}.nii.gz"


def _deciding(cohort: Cohort, manifest: Manifest) -> dict[str, Any]:
    """The settings that decide the result's voxels, with what ``auto`` means for this model."""
    options = cohort.options
    return decided(manifest, cohort.settings) | {
        "backend": options.backend,
        "precision": options.precision,
    }


def _make(
    cohort: Cohort, scan: BidsScan, made: Made, image: Path, networks: Networks
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write image and picture; the record's facts, and the sidecar that is not written yet."""
    _make_folder(image.parent)
    for path in (image, sidecar_of(image), _picture(cohort, scan), _record(cohort.out, scan)):
        remove_remains(path)
    network = networks.network(cohort.models[scan.suffix])
    faithfulness, picture = Faithfulness(), Preview()
    outcome = upscale_file(
        scan.path,
        image,
        network,
        cohort.settings,
        scratch=image.parent,
        consumers=[faithfulness, picture],
    )
    change = faithfulness.change.relative
    document = sidecar(
        cohort.dataset,
        scan,
        made,
        scale=network.model.manifest.scale,
        image_sha256=sha256_of(image),
        engine=f"{network.opened.name} {network.opened.version} on {network.opened.device}",
        relative_change_of_measured_band=change,
    )
    shown = _picture(cohort, scan)
    _make_folder(shown.parent)
    picture.write(shown, outcome.geometry)
    facts = {
        "image": image.relative_to(cohort.out).as_posix(),
        "model": made.model,
        "shape": list(outcome.geometry.fine_shape),
        "relative_change_of_measured_band": change,
        "bytes": {"in": scan.path.stat().st_size, "out": image.stat().st_size},
        "seconds_by_stage": dict(sorted(outcome.timings.seconds.items())),
        "warnings": [*network.notices, *outcome.warnings],
    }
    return facts, document


def write_record(
    out: Path, scan: BidsScan, result: Result, facts: Mapping[str, Any] | None = None
) -> None:
    """Keep what became of a scan for the cohort's report."""
    path = _record(out, scan)
    _make_folder(path.parent)
    about = {"suffix": scan.suffix, "source": scan.relative, **dataclasses.asdict(result)}
    write_json(path, {**about, **(facts or {})})


def _record(out: Path, scan: BidsScan) -> Path:
    return out / WORK / "records" / f"{scan.stem}.json"


def _picture(cohort: Cohort, scan: BidsScan) -> Path:
    return cohort.out / WORK / "pictures" / f"{scan.stem}.png"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PoanError(f"{folder}: cannot make this folder: {error.strerror}") from None
