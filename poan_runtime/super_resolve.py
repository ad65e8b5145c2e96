"""Super-resolve one volume in memory, or one scan from file to file in bounded memory."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from poan_runtime import geometry
from poan_runtime.commands.progress import Progress
from poan_runtime.errors import PoanError
from poan_runtime.images.nifti.header import keeps_scaling, parse_dtype, upscaled_header
from poan_runtime.images.nifti.read import READ_BYTES, Scan, Volume, open_scan
from poan_runtime.images.nifti.write import VolumeWriter
from poan_runtime.intensity import StreamedScale, streamed_intensity_scale
from poan_runtime.network import Network, Settings, load_network
from poan_runtime.tiles.layout import Plan
from poan_runtime.tiles.run import Slab, SliceRunner, Stages, run_volume

Look = Callable[[Slab, Slab], None]


class Source(Protocol):
    """Volumes of one shape that can be read slice by slice; `Scan` is one."""

    def read_slices(self, axis: int, start: int, stop: int, volume: int = 0) -> Slab:
        """See `Scan.read_slices`."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run did, for the report."""

    plan: Plan
    axis: int
    intensity_scales: list[float]
    stages: Stages
    warnings: list[str]


def upscale(
    volume_or_path: Volume | str | Path,
    model: str | Path | Network,
    settings: Settings | None = None,
) -> Volume:
    """Super-resolve in memory: the volume made finer in-plane, float32 real values.

    ``volume_or_path`` is a `Volume` or a NIfTI file of 2 to 7 dimensions; ``model`` is the name
    of a shipped model, a folder with a manifest, a model file, or a `Network` that
    `load_network` gave (which saves loading it for each of many volumes). Raises PoanError on
    what the caller can mend. For scans that do not fit in memory use `upscale_file`.

    Example (runs if a model is shipped)::

        import poan_runtime
        fine = poan_runtime.upscale("scan.nii.gz", "t2_x2")
        print(fine.data.shape, fine.affine)
    """
    settings = settings or Settings()
    network = model if isinstance(model, Network) else load_network(model)
    if isinstance(volume_or_path, Volume):
        source = _Array(volume_or_path)
        return _upscale_array(source, source.shape, volume_or_path.affine, network, settings)
    with open_scan(volume_or_path) as scan:
        header = scan.header
        return _upscale_array(scan, header.shape, header.affine, network, settings)


def _upscale_array(
    source: Source,
    shape: tuple[int, ...],
    affine: geometry.Affine,
    network: Network,
    settings: Settings,
) -> Volume:
    manifest = network.model.manifest
    axis = geometry.slice_axis(affine, shape, settings.axis)
    fine_shape = geometry.upscaled_shape(shape, manifest.scale, axis)
    out = np.empty((*geometry.spatial_shape(fine_shape), _volumes(shape)), np.float32, order="F")

    def write(volume: int, start: int, fine: Slab) -> None:
        np.moveaxis(out[..., volume], axis, 0)[start : start + len(fine)] = fine

    run_source(source, shape, axis, network, settings, write)
    fine_affine = geometry.upscaled_affine(affine, manifest.scale, axis, manifest.grid)
    return Volume(data=out.reshape(fine_shape, order="F"), affine=fine_affine)


class _Array:
    """A `Source` over an array."""

    def __init__(self, volume: Volume) -> None:
        self.shape = volume.data.shape
        if not 2 <= len(self.shape) <= 7 or min(self.shape) < 1:
            raise PoanError(f"expected a volume of 2 to 7 dimensions, got shape {self.shape}")
        spatial = geometry.spatial_shape(self.shape)
        self._data = np.asarray(volume.data, np.float32).reshape(*spatial, -1, order="F")

    def read_slices(self, axis: int, start: int, stop: int, volume: int = 0) -> Slab:
        return np.moveaxis(self._data[..., volume], axis, 0)[start:stop]


def upscale_file(
    scan: Scan,
    output: Path,
    network: Network,
    settings: Settings,
    *,
    dtype: str | None = None,
    scratch: Path | None = None,
    progress: Progress | None = None,
    look: Look | None = None,
) -> Outcome:
    """Super-resolve an open scan into the file ``output``, which appears whole or not at all.

    Voxels keep their type unless ``dtype`` names another. ``look`` is shown the middle slice of
    the first volume, LR and SR, both (h, w).
    """
    header, manifest = scan.header, network.model.manifest
    axis = geometry.slice_axis(header.affine, header.shape, settings.axis)
    voxel_type = header.dtype if dtype is None else parse_dtype(dtype, header)
    scaled = keeps_scaling(header, voxel_type)
    prefix = upscaled_header(
        header,
        scale=manifest.scale,
        axis=axis,
        grid=manifest.grid,
        dtype=voxel_type,
        note=f"poan {manifest.name}",
        path=output,
    )
    x, y, z = geometry.upscaled_shape(header.volume_shape, manifest.scale, axis)
    writer = VolumeWriter(
        output,
        prefix,
        shape=(x, y, z),
        axis=axis,
        dtype=voxel_type,
        slope=header.slope if scaled else 1.0,
        inter=header.inter if scaled else 0.0,
        scratch=scratch,
        threads=settings.threads or os.cpu_count() or 1,
    )
    with writer:
        outcome = run_source(
            scan,
            header.shape,
            axis,
            network,
            settings,
            lambda volume, start, fine: writer.write(fine),
            progress,
            look,
        )
    warnings = [*header.warnings, *outcome.warnings]
    if writer.saturated:
        warnings.append(f"{writer.saturated} voxels saturated at the ends of {voxel_type.name}")
    return dataclasses.replace(outcome, warnings=warnings)


def run_source(
    source: Source,
    shape: tuple[int, ...],
    axis: int,
    network: Network,
    settings: Settings,
    write: Callable[[int, int, Slab], None],
    progress: Progress | None = None,
    look: Look | None = None,
) -> Outcome:
    """Run every volume; ``write(volume, start, fine slices)`` gets them in order."""
    spatial = geometry.spatial_shape(shape)
    height, width = (spatial[other] for other in geometry.in_plane_axes(axis))
    plan = network.plan(height, width, spatial[axis], settings)
    runner = SliceRunner(
        backend=network.backend(settings), plan=plan, skip=settings.skip, stages=Stages()
    )
    if progress is not None:
        progress.begin(_volumes(shape) * spatial[axis] * plan.tiles_per_slice)

    def run_one(volume: int) -> StreamedScale:
        def read(start: int, stop: int) -> Slab:
            return source.read_slices(axis, start, stop, volume)

        def take(start: int, coarse: Slab, fine: Slab) -> None:
            middle = spatial[axis] // 2 - start
            if look is not None and volume == 0 and 0 <= middle < len(coarse):
                look(coarse[middle], fine[middle])
            write(volume, start, fine)

        with runner.stages.stage("intensity"):
            streamed = streamed_intensity_scale(
                lambda: _parts(source, spatial, volume), network.model.manifest.percentile
            )
        run_volume(
            runner,
            slices=spatial[axis],
            scale=streamed.scale,
            read=read,
            write=take,
            advance=progress.advance if progress is not None else _ignore,
        )
        return streamed

    streamed = [run_one(volume) for volume in range(_volumes(shape))]
    not_finite = sum(one.not_finite for one in streamed)
    return Outcome(
        plan=plan,
        axis=axis,
        intensity_scales=[one.scale for one in streamed],
        stages=runner.stages,
        warnings=[f"{not_finite} voxels are not finite; taken as 0"] if not_finite else [],
    )


def _parts(source: Source, spatial: Sequence[int], volume: int) -> Iterator[NDArray[np.float32]]:
    """A volume in parts in file order, whatever the slice axis: one pass over the file."""
    planes = max(1, READ_BYTES // (4 * spatial[0] * spatial[1]))
    for start in range(0, spatial[2], planes):
        yield source.read_slices(2, start, min(start + planes, spatial[2]), volume)


def _volumes(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape[3:], dtype=np.int64))


def _ignore(count: int) -> None:
    """Nobody watches the progress."""
