"""Training data: a folder of NIfTI volumes, decoded once into a memory-mapped cache.

A step never waits for gzip: each volume becomes two arrays of slices, HR (S, H, W) and its LR
(S, H / s, W / s), float32, divided by the LR volume's intensity unit, as the runtime will do.
Where LR is a scanner's, the cached LR is its noise-free part, and each patch is acquired from it.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from poan_runtime.errors import PoanError
from poan_runtime.files import cache_place, reading, working_folder
from poan_runtime.geometry import slice_axis
from poan_runtime.images.volume import read_volume
from poan_runtime.intensity import PERCENTILE, intensity_unit
from poan_runtime.signal.kspace import not_below_zero, to_native
from poan_runtime.signal.native import find_native
from poan_train.acquire import (
    FOREGROUND,
    Acquisition,
    acquire,
    bicubic_patch,
    draw,
    tissue_of,
)
from poan_train.convention import OURS, Preparation
from poan_train.degrade import Array, Degradation, crop_to_multiple, degrade
from poan_train.resample import Grid
from poan_train.subjects import Source, stem

CACHE_VERSION = 5
SLICE_FOREGROUND, PATCH_FOREGROUND = 0.05, 0.3
"""Least share of foreground in a slice, and of tissue in a training patch."""
TISSUE = 0.25
"""A voxel of a patch above this share of the volume's median tissue is tissue, not noisy air."""
IXI_CROP = (240, 240, 96)
"""In-plane rows and columns, and slices (POAN, Sec. 3.1)."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """HR (S, H, W) and LR (S, H / s, W / s) slices of one volume, memory-mapped float32."""

    source: Source
    hr: Array
    lr: Array
    cutoff: tuple[float, float]
    """Zero-fill cutoff of rows and columns that was found and undone, 1.0 for none."""
    tissue: float = 1.0
    """Median of LR's foreground, which an SNR refers to."""


def hr_slices(
    source: Source, axis: str | int | None = None, zero_filling: str = "undo"
) -> tuple[Array, tuple[float, float]]:
    """(slices (S, H, W) float32 in the file's units, zero-fill cutoffs that were undone).

    Not-finite values become zero. IXI volumes are cropped to 240x240x96 about their centre;
    T1 of IXI is stacked sagittally, which its largest spacing says already.
    """
    volume = read_volume(source.path)
    if volume.data.ndim != 3:
        raise PoanError(f"{source.path}: expected a 3D volume, got shape {volume.data.shape}")
    across = slice_axis(volume.affine, volume.data.shape, axis)
    slices = np.moveaxis(volume.data, across, 0)
    if source.is_ixi:
        slices = centre_crop(slices, (IXI_CROP[2], *IXI_CROP[:2]))
    slices = np.nan_to_num(slices, posinf=0.0, neginf=0.0)
    if zero_filling == "keep":
        return slices.astype(np.float32), (1.0, 1.0)
    return to_true_resolution(slices)


def to_true_resolution(slices: Array) -> tuple[Array, tuple[float, float]]:
    """Slices (S, H, W) on the matrix that was measured, and the cutoffs of rows and columns.

    Found and cropped as at run time, each axis by itself: learning to reproduce a scanner's
    interpolation is worthless. A cutoff is a share of Nyquist, 1.0 where the spectrum is full.
    """
    found = find_native(slices)
    rows, columns = (1.0 if c is None else c for c in found.cutoffs)
    if found.is_zero_filled:
        slices = not_below_zero(to_native(slices, found.native), slices)
    return np.asarray(slices, np.float32), (rows, columns)


def centre_crop(x: Array, shape: Sequence[int]) -> Array:
    """x without what lies outside ``shape`` about its centre; shorter axes stay as they are."""
    starts = [max(0, (have - want) // 2) for have, want in zip(x.shape, shape, strict=True)]
    return x[tuple(slice(a, a + want) for a, want in zip(starts, shape, strict=True))]


def make_pair(
    source: Source,
    scale: int,
    method: Degradation,
    axis: str | int | None,
    preparation: Preparation = OURS,
) -> Pair:
    """Read, undo zero-filling, degrade, divide by the LR's intensity scale, drop background."""
    hr, cutoff = hr_slices(source, axis, preparation.zero_filling)
    try:
        hr = crop_to_multiple(hr, scale)
    except ValueError as error:
        raise PoanError(f"{source.path}: {error}") from None
    lr = degrade(hr, scale, method)
    lr = np.rint(lr) if preparation.round_lr else lr
    unit = intensity_unit(lr)
    hr, lr = hr / np.float32(unit), lr / np.float32(unit)
    keep = is_foreground(lr) | (preparation.slices == "all")
    return Pair(source=source, hr=hr[keep], lr=lr[keep], cutoff=cutoff, tissue=tissue_of(lr))


def is_foreground(lr: Array) -> Array:
    """Which slices (S,) of lr (S, h, w), in units of its intensity scale, show anything."""
    return np.asarray((lr > FOREGROUND).mean(axis=(1, 2)) >= SLICE_FOREGROUND)


def default_cache() -> Path:
    """Where decoded volumes are kept: poan/ in the user's cache folder."""
    return cache_place()


def cached_pair(
    source: Source,
    scale: int,
    method: Degradation,
    axis: str | int | None,
    cache: Path,
    preparation: Preparation = OURS,
) -> Pair:
    """:func:`make_pair`, from the cache where the same file was prepared the same way before."""
    status = source.path.stat()
    key = [CACHE_VERSION, str(source.path.resolve()), status.st_size, status.st_mtime_ns]
    key += [scale, method, axis, PERCENTILE, FOREGROUND, SLICE_FOREGROUND]
    key += [] if preparation == OURS else [asdict(preparation)]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]
    folder = cache / f"{stem(source.path)}-{digest}"
    if not folder.is_dir():
        pair = make_pair(source, scale, method, axis, preparation)
        try:
            _keep(pair, folder)
        except OSError as error:
            raise PoanError(f"{cache}: cannot be written: {error.strerror}") from None
    with reading(folder):
        facts = json.loads((folder / "facts.json").read_text())
        return Pair(
            source=source,
            hr=np.load(folder / "hr.npy", mmap_mode="r"),
            lr=np.load(folder / "lr.npy", mmap_mode="r"),
            cutoff=tuple(facts["cutoff"]),
            tissue=facts["tissue"],
        )


def _keep(pair: Pair, folder: Path) -> None:
    """Write a pair to a folder of the cache, which appears whole."""
    with working_folder(folder.parent, ".", ".poan-pair") as work:
        new = work / folder.name
        new.mkdir()
        np.save(new / "hr.npy", pair.hr)
        np.save(new / "lr.npy", pair.lr)
        facts = {"cutoff": pair.cutoff, "tissue": pair.tissue}
        (new / "facts.json").write_text(json.dumps(facts))
        try:
            new.rename(folder)
        except OSError:  # another process was faster with the same content
            if not folder.is_dir():
                raise


def load_pairs(
    sources: Sequence[Source],
    scale: int,
    method: Degradation,
    axis: str | int | None = None,
    cache: Path | None = None,
    preparation: Preparation = OURS,
) -> Iterator[Pair]:
    """The cached pairs that keep at least one slice."""
    for source in sources:
        pair = cached_pair(source, scale, method, axis, cache or default_cache(), preparation)
        if len(pair.hr):
            yield pair


class PatchSampler:
    """Random patches as a function of seed, step and index, so that resuming repeats nothing.

    ``batch_size`` counts the patches of all processes; of ``world`` processes number ``rank`` takes
    every world-th. So the patches of a step are the same on any number of processes.

    ``batch(step)`` returns LR (N, 1, p, p) and HR (N, 1, s p, s p), float32, flipped and transposed
    at random; on the k-space grid transposed only, for a flip would move LR against HR by s - 1 HR
    voxels. With an ``acquisition`` (of pairs whose LR is ``truncated``) each patch's LR is a scan
    of its own. A volume is drawn in proportion to the root of its slices, so that one of 200 does
    not drown ten of 20; a patch that shows mostly air is drawn again, up to eight times. ``patch``
    is clamped to the smallest slice.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        scale: int,
        patch: int,
        batch_size: int,
        seed: int,
        *,
        rank: int = 0,
        world: int = 1,
        grid: Grid = "centre",
        acquisition: Acquisition | None = None,
    ) -> None:
        if not pairs:
            raise PoanError("no slice with anything but background to train on")
        self.pairs, self.scale = list(pairs), scale
        self.patch = min(patch, *(min(p.lr.shape[1:]) for p in pairs))
        counts = np.sqrt([len(p.lr) for p in pairs])
        self.odds = counts / counts.sum()
        self.seed, self.flips = seed, grid == "centre"
        self.indices = range(rank, batch_size, world)
        self.acquisition = acquisition

    def batch(self, step: int) -> tuple[Array, Array]:
        drawn = (self._patch(step, index) for index in self.indices)
        lr, hr = zip(*drawn, strict=True)
        return np.stack(lr)[:, None], np.stack(hr)[:, None]

    def _patch(self, step: int, index: int) -> tuple[Array, Array]:
        rng = np.random.default_rng([self.seed, 0, step, index])
        s, p = self.scale, self.patch
        pair = self.pairs[int(rng.choice(len(self.pairs), p=self.odds))]
        z, y, x = self._place(pair, rng)
        lr = self._lr(pair, z, y, x, rng)
        hr = pair.hr[z, s * y : s * (y + p), s * x : s * (x + p)]
        transpose, *flips = (bool(rng.integers(2)) for _ in range(3))
        if self.flips:
            lr, hr = flipped(lr, *flips), flipped(hr, *flips)
        return (lr.T, hr.T) if transpose else (lr, hr)

    def _place(self, pair: Pair, rng: np.random.Generator) -> tuple[int, int, int]:
        """Slice, row, column of a patch in LR voxels, one with tissue if eight tries find it."""
        p = self.patch
        for _ in range(8):
            z = int(rng.integers(len(pair.lr)))
            y, x = (int(rng.integers(n - p + 1)) for n in pair.lr.shape[1:])
            lr = pair.lr[z, y : y + p, x : x + p]
            if (lr > TISSUE * pair.tissue).mean() >= PATCH_FOREGROUND:
                break
        return z, y, x

    def _lr(self, pair: Pair, z: int, y: int, x: int, rng: np.random.Generator) -> Array:
        rows, columns = slice(y, y + self.patch), slice(x, x + self.patch)
        if self.acquisition is None:
            return pair.lr[z, rows, columns]
        scan = draw(self.acquisition, rng)
        if scan.bicubic:
            return bicubic_patch(pair.hr[z], y, x, self.patch, self.scale)
        return acquire(pair.lr[z], scan, pair.tissue, rng)[rows, columns]


class Ahead:
    """``sampler.batch`` with the next step's batch made by a thread while this one is trained on.

    The batches are the same: each is a function of its step.
    """

    def __init__(self, sampler: PatchSampler) -> None:
        self.sampler, self.worker = sampler, ThreadPoolExecutor(1)
        self.next: dict[int, Future[tuple[Array, Array]]] = {}

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(self, *_: object) -> None:
        self.worker.shutdown(cancel_futures=True)

    def batch(self, step: int) -> tuple[Array, Array]:
        now = self.next.get(step) or self.worker.submit(self.sampler.batch, step)
        self.next = {step + 1: self.worker.submit(self.sampler.batch, step + 1)}
        return now.result()


def flipped(x: Array, rows: bool, columns: bool) -> Array:
    """x (H, W) with its rows, its columns or both in reverse order."""
    return x[:: -1 if rows else 1, :: -1 if columns else 1]


def fixed_tiles(
    pairs: Sequence[Pair],
    scale: int,
    size: int,
    count: int,
    acquisition: Acquisition | None = None,
) -> tuple[Array, Array]:
    """The same ``count`` tiles every time, as many of each pair: LR and HR as in a batch."""
    samplers = [
        PatchSampler([pair], scale, size, 1, seed=2021, grid="kspace", acquisition=acquisition)
        for pair in pairs
    ]
    drawn = [samplers[i % len(samplers)].batch(i) for i in range(count)]
    lr, hr = zip(*drawn, strict=True)
    return np.concatenate(lr), np.concatenate(hr)
