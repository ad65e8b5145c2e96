"""Super-resolve a source slab by slab: Source -> Geometry -> Layout -> slabs -> Sink."""

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from nibabel.spatialimages import SpatialImage

from poan_runtime.as_measured import (
    Measured,
    MeasuredBand,
    NativeSource,
    air_in,
    cut_across_frames,
    filled_up,
    header_disagrees,
    network_sees,
    share_kept,
    slices_across,
)
from poan_runtime.below_zero import BelowZero
from poan_runtime.both_matrices import BothMatrices, from_which_matrix, native_share
from poan_runtime.geometry import Geometry
from poan_runtime.images.formats import open_sink, open_source
from poan_runtime.images.source import ArraySink, Sink, Slab, Source, intensity_of
from poan_runtime.images.suspects import fitting_model
from poan_runtime.images.volume import Volume, source_of
from poan_runtime.intensity import StreamedUnit
from poan_runtime.network import Network, Settings, load_network
from poan_runtime.signal.measured import Change
from poan_runtime.tiles.air import NO_AIR, Air
from poan_runtime.tiles.ensemble import Spread
from poan_runtime.tiles.layout import Layout
from poan_runtime.tiles.run import SliceRunner, Timings
from poan_runtime.tiles.volume import NO_TURN, Turn, run_volume


class Pair(NamedTuple):
    """A slab of slices before and after the network, real values."""

    volume: int
    start: int
    """The first slice's index across the slice axis."""
    lr: Slab
    """(n, h, w)"""
    sr: Slab
    """(n, s*h, s*w); with ``like_input`` s times the stored matrix."""
    changed: Slab | None = None
    """LR - down(SR) of what the network made, (n, h, w); None on the ``kspace`` grid."""
    spread: Slab | None = None
    """Standard deviation over eight flips and rotations of what the network made, as ``sr``; None
    unless the settings ask for it."""


Step = Callable[[Slab, Slab], Slab]
"""What is done to each slab after the network: (lr, sr) to the sr that is written."""
Consumer = Callable[[Geometry, Pair], None]
"""Who looks at each slab as it is written: a progress bar, a preview, a figure."""
Opens = Callable[[Network], Sink]
"""Opens a sink whose images name the network that makes them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run did; `upscale_file` returns it.

    ``geometry`` has shapes, affines and slice axis, ``layout`` the tiles in LR voxels. ``units``
    are what each volume's intensities were divided by, in the scan's unit; ``timings`` holds
    seconds and counts of tiles; ``warnings`` are one line each.

    Example (runs if a model is shipped)::

        outcome = poan_runtime.upscale_file("scan.nii.gz", "fine.nii.gz", "t2_x2")
        print(outcome.timings.tiles_run, outcome.units)
    """

    geometry: Geometry
    layout: Layout = dataclasses.field(repr=False)
    network: Network = dataclasses.field(repr=False)
    """What ran: of a model with plans for several tiles that of one tile."""
    units: tuple[float, ...]
    timings: Timings
    warnings: tuple[str, ...]
    measured: Measured | None = None
    """Native matrix and noise of the scan; None on the ``kspace`` grid."""
    change: Change | None = None
    """How much of what was measured the network changed; None likewise."""
    native_used: bool = False
    """Whether the network saw the native matrix of a scan that its scanner had zero-filled."""
    native_share: float = 1.0
    """Share of the native matrix's answer in the mean with that of the stored matrix."""
    measured_kept: float = 0.0
    """Share of LR's own band that was put back into SR."""
    below_zero: BelowZero = dataclasses.field(default_factory=BelowZero)
    """Ringing of the network that was cut off at 0: voxels, and the lowest in the scan's unit."""
    spread: Spread | None = None
    """Standard deviation over eight flips and rotations, where the settings ask for it."""

    @property
    def from_which_matrix(self) -> str | None:
        """One sentence for people: what a scan that was zero-filled was super-resolved from."""
        if self.measured is None or not (native := self.measured.native).is_zero_filled:
            return None
        used = "taken as it comes"
        if self.native_used:
            used = from_which_matrix(native, self.native_share, self.geometry)
        return f"zero-filled by its scanner, {native}; {used}"

    @property
    def faithfulness(self) -> str | None:
        """One sentence for people: what of the measurement the network changed."""
        if self.change is None or self.measured is None:
            return None
        share = f"{self.measured_kept:.0%} of " if 0 < self.measured_kept < 1 else ""
        back = f", {share}which was put back" if self.measured_kept else ""
        said = f"the network changed {self.change.relative:.2%} of what was measured{back}"
        lr = (self.change.squared_lr / max(self.change.count, 1)) ** 0.5
        if not (lr and (noise := self.measured.noise.sigma)):
            return said
        return f"{said}; the scan's noise is {noise / lr:.2%} of its signal"


class SuperResolution:
    """One source on its way through a network; `slabs` does the work.

    Everything derived is derived here, once: ``geometry``, ``layout``. ``steps`` are done to
    each slab after the network, in order, before the measured band is looked at. A scan that its
    scanner zero-filled is seen at its native matrix (`poan_runtime.as_measured`). ``turn`` is held
    while the network runs, not while the source is read for its intensity unit and its first slab,
    nor while the last slab is written and the sink is finished: with a lock of theirs, several runs
    share an engine without a pause between them.
    """

    def __init__(
        self,
        source: Source,
        network: Network,
        settings: Settings,
        *,
        steps: Sequence[Step] = (),
        turn: Turn | None = None,
    ) -> None:
        manifest = network.model.manifest
        scan = source
        source, lr_to_stored, self.measured = network_sees(source, manifest, settings)
        self.native_used = lr_to_stored is not None
        self.geometry = Geometry.derive(
            source.shape,
            source.affine,
            scale=manifest.scale,
            grid=manifest.grid,
            axis=slices_across(scan, settings.axis),
            lr_to_stored=lr_to_stored,
            fine_plane=self._like_input(manifest.scale, settings),
        )
        self.network = network.for_slices(self.geometry, settings)
        self.timings = Timings()
        self.band: MeasuredBand | None = None
        if self.measured is not None:
            share = share_kept(manifest, settings)
            self.band = MeasuredBand(scale=manifest.scale, share=share)
        self.source = source
        """What the network sees."""
        self.below_zero = BelowZero()
        self.spread = Spread() if settings.uncertainty else None
        self._keep_negative = settings.keep_negative
        self._remarks = cut_across_frames(scan, self.geometry.axis)
        if self.measured is not None:
            self._remarks += header_disagrees(scan, self.geometry.axis, self.measured.native)
        self._manifest = manifest
        self._steps = steps
        self._turn = NO_TURN if turn is None else turn
        self._units: list[StreamedUnit] = []
        self.runner = self._runner_of(settings)
        self.layout = self.runner.layout

    def _runner_of(self, settings: Settings) -> SliceRunner | BothMatrices:
        """What runs the slabs: on the matrix of the source, or on that and the stored one."""
        runner = SliceRunner(
            backend=self.network.backend(settings),
            layout=self.network.layout(self.geometry, settings),
            skip=settings.skip,
            timings=self.timings,
        )
        if not isinstance(self.source, NativeSource) or settings.native != "auto":
            return runner
        native = self.source.native
        if (share := native_share(native)) == 1:
            return runner
        wide = self.network.layout(self.geometry, settings, native.matrix)
        return BothMatrices.of(runner, wide, share, self.source.to_native)

    def looks(self) -> list[tuple[Source, Layout]]:
        """Each matrix that the network sees, the native one first: its source and its tiles."""
        first = self.source, self.layout
        if isinstance(self.runner, BothMatrices) and isinstance(self.source, NativeSource):
            return [first, (self.source.stored, self.runner.stored.layout)]
        return [first]

    def _like_input(self, scale: int, settings: Settings) -> tuple[int, int] | None:
        """``scale`` times the stored matrix, where that is wanted and not what comes by itself."""
        if not (settings.like_input and self.native_used and self.measured is not None):
            return None
        rows, columns = self.measured.native.matrix
        return scale * rows, scale * columns

    def slabs(self) -> Generator[Pair, None, None]:
        """Run everything, volume by volume; a slab is the caller's once it is yielded."""
        for volume in range(self.geometry.volumes):
            with self.timings.time("intensity"):
                found = self.intensity(volume)
            self._units.append(found)
            clamp = found.negative == 0 and not self._keep_negative
            for pair in self._slabs_of(volume, found.unit):
                yield pair._replace(sr=self.below_zero.clamp(pair.sr)) if clamp else pair

    def intensity(self, volume: int) -> StreamedUnit:
        """What a volume's intensities are divided by, from one pass over it."""
        if not isinstance(self.source, NativeSource):
            return intensity_of(self.source, volume, self._manifest.percentile)
        found = intensity_of(self.source, volume, self._manifest.percentile, self.geometry.axis)
        return dataclasses.replace(found, not_finite=self.source.not_finite(volume))

    def air(self, volume: int, unit: float) -> Air:
        """Up to where a volume's tiles count as air; none does where the spread is asked for."""
        if self.measured is None or self.spread is not None:
            return NO_AIR
        axis = self.geometry.axis
        return air_in(self.source, axis, self.measured, self._manifest, volume, unit)

    def outcome(self, warnings: Sequence[str] = ()) -> Outcome:
        """What was done, once all slabs were taken; ``warnings`` are others', put after ours."""
        not_finite = sum(found.not_finite for found in self._units)
        ours = [f"{not_finite} voxels are not finite; taken as 0"] if not_finite else []
        if cut := self.timings.too_large:
            ours.append(f"{cut} voxels of the result are beyond float32; cut to its ends")
        return Outcome(
            geometry=self.geometry,
            layout=self.layout,
            network=self.network,
            units=tuple(found.unit for found in self._units),
            timings=self.timings,
            warnings=(*self.source.warnings, *self._remarks, *ours, *warnings),
            measured=self.measured,
            change=self.band.change if self.band else None,
            native_used=self.native_used,
            native_share=self.runner.share if isinstance(self.runner, BothMatrices) else 1.0,
            measured_kept=self.band.share if self.band else 0.0,
            below_zero=self.below_zero,
            spread=self.spread,
        )

    def _slabs_of(self, volume: int, unit: float) -> Generator[Pair, None, None]:
        source = self.looks()[-1][0]  # the stored one, where both are run

        def read(start: int, stop: int) -> Slab:
            return source.read_slices(self.geometry.axis, start, stop, volume)

        slabs = run_volume(
            self.runner,
            slices=self.geometry.slices,
            unit=unit,
            read=read,
            turn=self._turn,
            air=self.air(volume, unit),
        )
        with contextlib.closing(slabs):
            for start, lr, images in slabs:
                sr = images[0]
                for step in self._steps:
                    sr = step(lr, sr)
                changed = None
                if self.band is not None:
                    with self.timings.time("measured"):
                        sr, changed = self.band(lr, sr)
                spread = self._spread_of(images, unit)
                sr = filled_up(sr, self.geometry.fine_plane)
                yield Pair(volume, start, lr, sr, changed, spread)

    def _spread_of(self, images: Slab, unit: float) -> Slab | None:
        """The second image of (images, n, s*h, s*w), looked at."""
        if self.spread is None:
            return None
        mean, spread = images
        self.spread.add(spread, mean, unit)
        return filled_up(spread, self.geometry.fine_plane)


def write_slabs(run: SuperResolution, sink: Sink) -> Generator[Pair, None, None]:
    """Write each slab, in a thread beside the inference, and pass it on.

    The sink is begun and finished; one that is not finished is left to the caller to close.
    """

    def timed_write(pair: Pair) -> None:
        with run.timings.time("write"):
            sink.write(pair.volume, pair.start, pair.sr)

    sink.begin(run.geometry)
    written: Future[None] | None = None
    writer = ThreadPoolExecutor(1, thread_name_prefix="poan-write")
    with writer, contextlib.closing(run.slabs()) as slabs:
        for pair in slabs:
            if written is not None:
                written.result()
            written = writer.submit(timed_write, pair)
            yield pair
        if written is not None:
            written.result()
    sink.finish(run.outcome().faithfulness)


def upscale_file(
    source: Source | str | Path,
    target: Sink | str | Path | Opens,
    model: Network | str | Path,
    settings: Settings | None = None,
    *,
    dtype: str | None = None,
    saturate: bool = False,
    scratch: Path | None = None,
    consumers: Sequence[Consumer] = (),
    steps: Sequence[Step] = (),
    turn: Turn | None = None,
) -> Outcome:
    """Super-resolve in bounded memory; the output appears whole or not at all.

    ``source`` is a path or an open `Source` (which the caller closes), ``target`` a path, a fresh
    `Sink` or a function that opens one for the network that runs, ``model`` as for `load_network`,
    ``auto`` (by the scan's contrast) or a `Network` (which the caller closes).
    Voxels keep their type unless ``dtype`` (``int16``, ``float32``, ...) names another for a
    path, which is refused if over 1 % of the voxels do not fit into it, unless ``saturate`` cuts
    them to its ends. ``scratch`` is the folder for temporary files. Each consumer is called with
    every `Pair` in order. ``steps`` and ``turn`` as for `SuperResolution`. An input of (x, y, z)
    becomes scale times as large along both axes of its slices, or of the native matrix's. Raises
    PoanError on what the caller can mend; then nothing is written.

    Example (runs if a model is shipped)::

        outcome = poan_runtime.upscale_file("scan.nii.gz", "fine.nii.gz", "t2_x2")
        print(outcome.geometry.fine_shape, outcome.warnings)
    """
    settings = settings or Settings()
    with contextlib.ExitStack() as stack:
        if isinstance(source, str | Path):
            source = stack.enter_context(contextlib.closing(open_source(source, scratch)))
        if not isinstance(model, Network):
            model = stack.enter_context(load_network(fitting_model(model, source)))
        if isinstance(target, str | Path):
            target = open_sink(
                target,
                source,
                note=f"poan {model.model.manifest.name}",
                dtype=dtype,
                saturate=saturate,
                scratch=scratch,
                threads=settings.threads,
            )
        if not callable(target):
            stack.enter_context(contextlib.closing(target))
        run = SuperResolution(source, model, settings, steps=steps, turn=turn)
        if callable(target):
            target = stack.enter_context(contextlib.closing(target(run.network)))
        slabs = stack.enter_context(contextlib.closing(write_slabs(run, target)))
        for pair in slabs:
            for consume in consumers:
                consume(run.geometry, pair)
        return run.outcome(target.warnings)


def upscale(
    scan: Volume | SpatialImage | str | Path,
    model: str | Path | Network,
    settings: Settings | None = None,
) -> Volume:
    """Super-resolve in memory: the volume made finer in-plane, float32 real values.

    ``scan`` is a `Volume`, a nibabel image or a scan file, of 2 to 7 dimensions; ``model`` is the
    name of a shipped model, ``auto``, a folder with a manifest, a model file, or a `Network` that
    `load_network` gave (which saves loading it for each of many volumes). The result has the
    input's axes, those in the slice plane ``scale`` times as long; its affine is in mm. Raises
    PoanError on what the caller can mend. For scans that do not fit in memory use `upscale_file`.

    Example (runs if a model is shipped)::

        import poan_runtime
        fine = poan_runtime.upscale("scan.nii.gz", "t2_x2")
        print(fine.data.shape, fine.affine)
        image = fine.to_nibabel()  # or: fine.save("fine.nii.gz")
    """
    sink = ArraySink()
    outcome = upscale_file(source_of(scan), sink, model, settings)
    return Volume(data=sink.data, affine=outcome.geometry.fine_affine)
