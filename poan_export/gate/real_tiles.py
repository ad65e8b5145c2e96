"""Tiles for the gate: real ones, from scans, and hard cases made from them."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poan_runtime.errors import PoanError
from poan_runtime.geometry import slice_axis
from poan_runtime.images.volume import read_volume
from poan_runtime.intensity import intensity_unit
from poan_train.acquire import lr_of

Array = NDArray[Any]
REAL_TILES = 2
MOST_SCANS, TILES_PER_SCAN = 8, 4
"""What 8-bit convolutions are calibrated and judged on."""
DARK, BRIGHT = 1e-3, 1e3
"""Factors on the intensities of a real tile."""
BRIGHTEST = "intensities x 1e3"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One tile (1, tile, tile) float32 after the intensity rule, and its truth if it has one."""

    name: str
    lr: Array
    hr: Array | None = None
    """(1, s tile, s tile), in the same units."""


@dataclass(frozen=True, kw_only=True)
class Cases:
    """The tiles of a gate; ``source`` says where the real ones come from."""

    items: tuple[Case, ...]
    source: str

    @property
    def batch(self) -> Array:
        """(N, 1, tile, tile) float32."""
        return np.stack([case.lr for case in self.items])


class Scans:
    """The scans of an export and the tiles taken from them; each scan is read once.

    ``data`` is a NIfTI file or a folder; None takes scans packaged by a dependency. ``tile`` is
    in LR voxels. ``degradation`` is the checkpoint's: LR is made as it was for the training, a
    scanner's LR with another draw for each tile.
    """

    def __init__(
        self, data: Path | None, tile: int, scale: int, degradation: Mapping[str, Any]
    ) -> None:
        self.paths = scan_paths(data)
        self.source = str(data) if data else "scans packaged with nibabel"
        self._side, self._scale = scale * tile, scale
        self._degradation = degradation
        self._tiles: dict[Path, list[Array]] = {}

    def tiles(self, path: Path) -> list[Array]:
        """At most `TILES_PER_SCAN` HR tiles of a scan, the most varied first."""
        if path not in self._tiles:
            self._tiles[path] = hr_tiles(path, self._side, TILES_PER_SCAN)
        return self._tiles[path]

    def gate_cases(self) -> Cases:
        """Real tiles and the hard cases of the gate."""
        real: list[Case] = []
        for path in self.paths:
            if len(real) == REAL_TILES:
                break
            wanted = REAL_TILES - len(real) if path == self.paths[-1] else 1
            real += self._cases(self.tiles(path)[:wanted], len(real))
        if not real:
            raise PoanError(f"{self.source}: no slice with signal to take a tile from")
        return Cases(items=(*real, *hard_cases(real[0].lr)), source=self.source)

    @functools.cached_property
    def truths(self) -> tuple[Case, ...]:
        """Real LR tiles with their truth, from several slices of several scans."""
        tiles = [hr for path in self.paths[:MOST_SCANS] for hr in self.tiles(path)]
        return tuple(self._cases(tiles, 0))

    def _cases(self, tiles: Sequence[Array], first: int) -> list[Case]:
        return [
            real_case(f"real {i}", hr, self._scale, self._degradation, seed=i)
            for i, hr in enumerate(tiles, first)
        ]


def scan_paths(parity_data: Path | None) -> list[Path]:
    """NIfTI files: those given, a folder's, or scans packaged by a dependency."""
    if parity_data is None:
        folder = files("nibabel") / "tests" / "data"
        return [Path(str(folder / name)) for name in ("example4d.nii.gz", "anatomical.nii")]
    if parity_data.is_dir():
        found = sorted(p for p in parity_data.rglob("*") if p.name.endswith((".nii", ".nii.gz")))
        if not found:
            raise PoanError(f"{parity_data}: no .nii or .nii.gz file in this folder")
        return found
    if not parity_data.is_file():
        raise PoanError(f"{parity_data}: no such file or folder")
    return [parity_data]


def hr_tiles(path: Path, size: int, count: int) -> list[Array]:
    """At most ``count`` tiles (1, size, size), each from the centre of a slice of a volume.

    The slices with the largest standard deviation come first. Values are in stored units.
    A slice smaller than the tile is continued by reflection.
    """
    volume = read_volume(path)
    data = np.nan_to_num(np.asarray(volume.data, np.float32), posinf=0.0, neginf=0.0)
    data = data.reshape(*data.shape[:2], -1)
    slices = np.moveaxis(data, slice_axis(volume.affine, data.shape), 0)  # (S, H, W)
    spread = slices.std(axis=(1, 2))
    best = [int(i) for i in np.argsort(-spread, kind="stable")[:count] if spread[i] > 0]
    return [_centre(slices[i], size)[None] for i in best]


def _centre(image: Array, size: int) -> Array:
    """The central (size, size) of an image, continued by reflection where it is smaller."""
    pads = [(max(0, size - n) // 2, max(0, size - n + 1) // 2) for n in image.shape]
    image = np.pad(image, pads, mode="symmetric")
    top, left = ((n - size) // 2 for n in image.shape)
    return image[top : top + size, left : left + size]


def real_case(
    name: str, hr: Array, scale: int, degradation: Mapping[str, Any], seed: int = 0
) -> Case:
    """LR tile of an HR tile, both divided by the LR tile's intensity unit."""
    lr = lr_of(hr, scale, degradation, seed)
    unit = intensity_unit(lr)
    return Case(name=name, lr=(lr / unit).astype(np.float32), hr=(hr / unit).astype(np.float32))


def hard_cases(real: Array) -> Iterable[Case]:
    """The tiles on which roots and half precision break; ``real`` is (1, tile, tile)."""
    zeros = np.zeros_like(real)
    spark = zeros.copy()
    spark[0, real.shape[1] // 2, real.shape[2] // 2] = 1.0
    yield Case(name="constant", lr=np.full_like(real, 0.5))
    yield Case(name="background", lr=zeros)
    yield Case(name="one bright voxel", lr=spark)
    yield Case(name="intensities x 1e-3", lr=(real * DARK).astype(np.float32))
    yield Case(name=BRIGHTEST, lr=(real * BRIGHT).astype(np.float32))


def chunks(batch: Array, size: int) -> Sequence[Array]:
    """``batch`` in parts of at most ``size`` along its first axis."""
    return [batch[i : i + size] for i in range(0, len(batch), size)]
