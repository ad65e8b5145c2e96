"""What `poan-run` does with DICOM: list series, open one, write a derived one."""

import contextlib
import dataclasses
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from poan_runtime import geometry
from poan_runtime.errors import PoanError
from poan_runtime.network import Network, Settings
from poan_runtime.super_resolve import Outcome, run_source


@contextlib.contextmanager
def dicom_extra() -> Iterator[None]:
    """Turn a missing pydicom, and only that, into the command that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "pydicom":
            raise
        raise PoanError("DICOM needs pydicom: pip install 'poan[dicom]'") from None


def series_lines(path: Path) -> tuple[list[str], list[str]]:
    """The table of a folder's series, and a line for each broken file."""
    with dicom_extra():
        from poan_runtime.images.dicom.series import find_series, table
    if not path.exists():
        raise PoanError(f"{path}: no such file or folder")
    found, broken = find_series(path)
    return table(found), broken


def open_series(path: Path, series: str | None, scratch: Path | None) -> Any:
    """One series, opened; it stands where a `Scan` does."""
    with dicom_extra():
        from poan_runtime.images.dicom.read import open_dicom
    return open_dicom(path, series, scratch)


def derive_series(
    source: Any,
    output: Path,
    network: Network,
    settings: Settings,
    *,
    dtype: str | None,
    scratch: Path | None,
    progress: Any,
    look: Any,
    root: str | None,
    seed: str | None,
    burn_in: bool,
) -> Outcome:
    """Super-resolve an open DICOM series into a folder of derived images."""
    with dicom_extra():
        from poan_runtime.images.dicom.derived import DerivedSeries
        from poan_runtime.images.dicom.provenance import Identity
    if dtype is not None:
        raise PoanError("--dtype: a derived DICOM series keeps 16 bits; name -o x.nii.gz for it")
    if not hasattr(source, "stack"):
        raise PoanError(f"{output}: expected a name that ends in .nii or .nii.gz")
    manifest = network.model.manifest
    axis = geometry.slice_axis(source.affine, source.shape, settings.axis)
    sink = DerivedSeries(
        source,
        output,
        _provenance(network, settings, axis),
        identity=Identity(root=root, seed=seed),
        burn_in=burn_in,
        scratch=scratch,
    )
    with sink:
        sink.begin(
            geometry.upscaled_shape(source.shape, manifest.scale, axis),
            geometry.upscaled_affine(source.affine, manifest.scale, axis, manifest.grid),
            axis,
        )
        outcome = run_source(
            source, source.shape, axis, network, settings, sink.write, progress, look
        )
        sink.finish()
    warnings = [*source.warnings, *outcome.warnings]
    if sink.saturated:
        warnings.append(f"{sink.saturated} voxels saturated at the ends of 16 bits")
    return dataclasses.replace(outcome, warnings=warnings)


def _provenance(network: Network, settings: Settings, axis: int) -> Any:
    """What the images say of the model, and all else that decides their voxels."""
    from poan_runtime.images.dicom.provenance import Provenance

    model, opened = network.model, network.opened
    decides = dataclasses.asdict(settings)
    for speed_alone in ("threads", "batch"):
        decides.pop(speed_alone)
    decides |= {"axis": axis, "precision": opened.precision or model.file.precision}
    return Provenance(
        version=_version(),
        model=model.manifest.name,
        model_sha256=model.file.sha256,
        scale=model.manifest.scale,
        settings=repr(sorted(decides.items())),
    )


def _version() -> str:
    try:
        return metadata.version("poan")
    except metadata.PackageNotFoundError:
        return "source"
