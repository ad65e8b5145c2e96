"""Images made finer as they come: one intensity unit for a series, its geometry kept."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from poan_runtime.as_measured import MeasuredBand, cropped, filled_up, share_kept
from poan_runtime.errors import Say
from poan_runtime.geometry import Geometry
from poan_runtime.images.source import Slab
from poan_runtime.images.stored import to_stored
from poan_runtime.intensity import intensity_unit
from poan_runtime.network import Network, Settings
from poan_runtime.services.mrd.meta import described
from poan_runtime.services.mrd.native import NativeMatrices
from poan_runtime.services.mrd.wire import Image, ImageType
from poan_runtime.tiles.run import SliceRunner, Timings

SERIES_OFFSET = 1000
Position = Literal["centre", "corner"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Way:
    """How images are treated.

    ``unit`` is what intensities are divided by; None takes the percentile of a series' first
    image, or with ``wait_volume``, which holds images until the end, of all its images.
    ``position`` is what the header's position means: the image's centre (MRD), or the centre of
    its first voxel, as some converters write it.
    """

    settings: Settings = dataclasses.field(default_factory=Settings)
    unit: float | None = None
    wait_volume: bool = False
    position: Position = "centre"


class Stream:
    """The images of one connection."""

    def __init__(self, network: Network, way: Way, say: Say = print) -> None:
        self._network, self._way = network, way
        self.native = NativeMatrices(network.model.manifest, way.settings, say)
        self._units: dict[int, float] = {}
        self._held: dict[int, list[Image]] = {}
        self._runners: dict[tuple[int, int], SliceRunner] = {}
        self.latencies_s: list[float] = []
        self.untouched = 0

    def take(self, image: Image) -> Iterator[Image]:
        """An image in, what can go out now out."""
        if not is_magnitude(image):
            self.untouched += 1
            yield image
            return
        series = int(image.head["image_series_index"])
        if self._way.wait_volume:
            self._held.setdefault(series, []).append(image)
            return
        seen = self._seen(image)
        if series not in self._units:
            self._units[series] = self._way.unit or self._unit_of([seen])
        yield self._finer(image, seen, self._units[series])

    def end(self) -> Iterator[Image]:
        """What was held."""
        for images in self._held.values():
            volume = [self._seen(image, images) for image in images]
            unit = self._way.unit or self._unit_of(volume)
            for image, seen in zip(images, volume, strict=True):
                yield self._finer(image, seen, unit)
        self._held.clear()

    def _seen(self, image: Image, volume: Sequence[Image] = ()) -> Slab:
        """The image's planes (channels * z, y, x) as the network sees them: not zero-filled."""
        planes = np.asarray(image.data.reshape(-1, *image.data.shape[2:]), np.float32)
        native = self.native.of(image, volume)
        return planes if native == planes.shape[1:] else cropped(planes, native)

    def _unit_of(self, volume: list[Slab]) -> float:
        values = np.concatenate([seen.ravel() for seen in volume])
        return intensity_unit(values, self._network.model.manifest.percentile)

    def _finer(self, image: Image, seen: Slab, unit: float) -> Image:
        start = time.perf_counter()
        fine = self.super_resolved(seen, unit)
        if self._way.settings.like_input:
            rows, columns = image.data.shape[2:]
            fine = filled_up(fine, (self._scale * rows, self._scale * columns))
        if seen.min() >= 0 and not self._way.settings.keep_negative:
            fine = np.maximum(fine, 0)
        stored, _ = to_stored(fine, image.data.dtype, 1.0, 0.0)
        made = Image(
            head=self._head(image.head, fine.shape),
            attributes=described(image.attributes, self._scale, self._network.model.manifest.name),
            data=stored.reshape(*image.data.shape[:2], *stored.shape[1:]),
        )
        self.latencies_s.append(time.perf_counter() - start)
        return made

    @property
    def _scale(self) -> int:
        return self._network.model.manifest.scale

    def super_resolved(self, planes: NDArray[np.float32], unit: float) -> NDArray[np.float32]:
        """Planes (n, y, x) to (n, s*y, s*x), real values."""
        manifest, settings = self._network.model.manifest, self._way.settings
        fine = self._runner(planes.shape[1], planes.shape[2]).run(planes, unit)
        share = share_kept(manifest, settings)
        if manifest.grid != "centre" or not share:
            return fine
        return MeasuredBand(scale=manifest.scale, share=share)(planes, fine)[0]

    def _runner(self, rows: int, columns: int) -> SliceRunner:
        if (rows, columns) not in self._runners:
            manifest, settings = self._network.model.manifest, self._way.settings
            geometry = Geometry.derive(
                (rows, columns, 1), np.eye(4), scale=manifest.scale, grid=manifest.grid, axis=2
            )
            network = self._network.for_slices(geometry, settings)
            self._runners[rows, columns] = SliceRunner(
                backend=network.backend(settings),
                layout=network.layout(geometry, settings),
                skip=settings.skip,
                timings=Timings(),
            )
        return self._runners[rows, columns]

    def _head(self, head: np.void, fine: tuple[int, ...]) -> np.void:
        """The header of the finer image (..., y, x): a series of its own at the same place."""
        made = head.copy()
        made["position"] = finer_position(
            head, fine[:-3:-1], self._network.model.manifest.grid, self._way.position
        )
        series = int(head["image_series_index"]) + SERIES_OFFSET
        made["image_series_index"] = series % (1 << 16)
        return made


def is_magnitude(image: Image) -> bool:
    """Whether a network may see it; a header that does not say is believed to be one."""
    return not image.complex and int(image.head["image_type"]) in (0, ImageType.MAGNITUDE)


def finer_position(
    head: np.void, fine: tuple[int, ...], grid: str, position: Position
) -> NDArray[Any]:
    """Where the finer image of ``fine`` voxels (x, y) lies, in the header's sense; LPS mm.

    On the ``centre`` grid the field of view stays, so its centre does, and the first voxel moves
    by (n / fine - 1) / 2 of n old voxels. On the ``kspace`` grid the first voxel stays and the
    centre moves.
    """
    sign = {("centre", "corner"): 1.0, ("kspace", "centre"): -1.0}.get((grid, position), 0.0)
    coarse = np.maximum(head["matrix_size"][:2], 1)
    moves = sign * (coarse / np.array(fine) - 1) / 2  # old voxels along x, y
    x_mm, y_mm = moves * head["field_of_view"][:2] / coarse
    along = head["read_dir"] * np.float32(x_mm) + head["phase_dir"] * np.float32(y_mm)
    return np.asarray(head["position"] + along, np.float32)
