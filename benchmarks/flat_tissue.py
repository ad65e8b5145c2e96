"""Does super-resolution raise the noise where there is nothing but tissue?

Each validation scan is super-resolved as it comes, as `poan-run auto` does: by the model of its
contrast, where it was zero-filled on both matrices. ``--model`` names one model for all.
Where the tissue is flat the standard deviation is noise, and an interpolation that adds nothing
leaves it as it is: it is compared after x2 by sinc (zero-filling) and by the network.

A patch is 8x8 LR voxels on a grid of 8. It is *without structure* by LR alone: smoothed by a
Gaussian of two voxels, the patch and four voxels about it (16x16) hold no value below 0.3 of the
scan's tissue, and its range there, over its mean, is among the smallest 2 % of all such patches
(at least 20 of them). The smoothing takes the noise out of that choice. The standard deviation of
the 16x16 SR voxels is taken about a fitted plane, so that slow shading does not count. Reported per
scan: the root mean square over the patches, over their mean, the ratio of the two with its 95 %
interval (4,000 draws of the patches), and the share of patches where the network's is no higher
than sinc's; and how alike neighbouring LR voxels are about the plane (lag 1: white noise has
-0.05 here), since where a filter or structure made them alike it is not noise that is looked at.

    python -m benchmarks.flat_tissue VALIDATION_FOLDER
    python -m benchmarks.flat_tissue VALIDATION_FOLDER --picture T1_openms --png crop.png
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter, maximum_filter, minimum_filter

from benchmarks import record
from benchmarks.native import tissue
from poan_runtime.both_matrices import native_share
from poan_runtime.geometry import slice_axis
from poan_runtime.images.source import ArraySink, ArraySource
from poan_runtime.images.suspects import contrast_of
from poan_runtime.images.volume import read_volume
from poan_runtime.models.find import auto_model
from poan_runtime.network import Network, Settings, load_network
from poan_runtime.signal.kspace import not_below_zero, to_native
from poan_runtime.signal.measured import up
from poan_runtime.signal.native import Native, find_native, sampled
from poan_runtime.super_resolve import upscale_file

Slices = NDArray[np.float32]

SCALE = 2
PATCH, MARGIN = 8, 4
SMOOTH = 2.0
LEAST = 0.3
SHARE, FEWEST = 0.02, 20
DRAWS = 4000
CROP, ZOOM = 40, 5
"""Side of the picture's crop in LR voxels, and pixels per SR voxel."""
RESULT = record.RESULTS / "flat_tissue" / "auto.json"


class Place(NamedTuple):
    """A patch: slice, first row, first column, in LR voxels."""

    z: int
    y: int
    x: int


def flat_places(lr: Slices) -> list[Place]:
    """The patches without structure of LR slices (n, h, w), the flattest first."""
    smooth = np.stack([gaussian_filter(image, SMOOTH) for image in lr.astype(np.float64)])
    side = PATCH + 2 * MARGIN
    # of the 16x16 voxels about each: the filters' window of even size reaches one farther down
    low, high = (f(smooth, (1, side, side)) for f in (minimum_filter, maximum_filter))
    centres = np.s_[:, side // 2 : -side // 2 : PATCH, side // 2 : -side // 2 : PATCH]
    low, high = low[centres], high[centres]
    places = np.argwhere(low > LEAST * tissue(lr))
    ranges = [(high[z, i, j] - low[z, i, j]) / (high[z, i, j] + low[z, i, j]) for z, i, j in places]
    count = max(FEWEST, round(SHARE * len(places)))
    flattest = places[np.argsort(ranges, kind="stable")[:count]]
    first = side // 2 - PATCH // 2
    return [Place(int(z), int(first + PATCH * i), int(first + PATCH * j)) for z, i, j in flattest]


def patch_of(image: Slices, place: Place, scale: int) -> NDArray[np.float64]:
    """A patch of slices (n, scale h, scale w)."""
    rows, columns = (slice(scale * a, scale * (a + PATCH)) for a in (place.y, place.x))
    return image[place.z, rows, columns].astype(np.float64)


def deviation(patch: NDArray[np.float64]) -> float:
    """Standard deviation of a patch about the plane that fits it best."""
    return float(np.std(patch - fitted_plane(patch)))


def fitted_plane(patch: NDArray[np.float64]) -> NDArray[np.float64]:
    """The plane of least squares through a patch."""
    rows, columns = np.indices(patch.shape)
    plane = np.column_stack([np.ones(patch.size), rows.ravel(), columns.ravel()])
    fitted = plane @ np.linalg.lstsq(plane, patch.ravel(), rcond=None)[0]
    return np.asarray(fitted.reshape(patch.shape))


def alike(patch: NDArray[np.float64]) -> float:
    """Correlation of neighbouring voxels of a patch about its plane: lag 1, both axes."""
    rest = patch - fitted_plane(patch)
    along = (np.mean(rest[1:] * rest[:-1]) + np.mean(rest[:, 1:] * rest[:, :-1])) / 2
    return float(along / np.mean(rest**2))


def interval(stds: dict[str, NDArray[np.float64]]) -> list[float]:
    """95 % interval of the ratio of root mean squares, network to sinc: patches drawn anew."""
    count = len(stds["sinc"])
    drawn = np.random.default_rng(0).integers(0, count, (DRAWS, count))
    sinc, network = (np.mean(stds[name][drawn] ** 2, axis=1) for name in ("sinc", "network"))
    return np.percentile(np.sqrt(network / sinc), [2.5, 97.5]).tolist()


def stored_slices(path: Path, count: int) -> tuple[Slices, Native]:
    """Some slices (n, h, w) of a scan as its scanner gave them, and its native matrix."""
    volume = read_volume(path)
    slices = np.moveaxis(volume.data, slice_axis(volume.affine, volume.data.shape), 0)
    clean = np.nan_to_num(slices, posinf=0.0, neginf=0.0)
    return clean[sampled(len(clean), count)], find_native(clean)


def by_default(slices: Slices, native: Native, network: Network) -> Slices:
    """SR (n, 2 h, 2 w) of the native matrix (h, w), of stored slices by the default settings.

    The native matrix is that of the whole scan: these few slices are not asked for it again.
    """
    source, sink = (
        ArraySource(np.moveaxis(slices, 0, 2), np.diag([1.0, 1.0, 5.0, 1.0])),
        ArraySink(),
    )
    source.native_shape = (*native.native, len(slices))  # type: ignore[attr-defined]
    upscale_file(source, sink, network, Settings(axis=2))
    return np.moveaxis(sink.data, 2, 0)


def measure(path: Path, network: Network, count: int) -> tuple[dict[str, Any], dict[str, Slices]]:
    """A scan's row, and its slices as LR, by sinc and by the network."""
    stored, native = stored_slices(path, count)
    lr = not_below_zero(to_native(stored, native.native), stored)
    images = {"sinc": up(lr, SCALE), "network": by_default(stored, native, network)}
    places = flat_places(lr)
    found = {
        name: np.array([deviation(patch_of(image, place, SCALE)) for place in places])
        for name, image in images.items()
    }
    mean = float(np.mean([patch_of(lr, place, 1).mean() for place in places]))
    rms = {name: float(np.sqrt(np.mean(stds**2))) for name, stds in found.items()}
    row = {
        "volume": path.name.split(".")[0],
        "model": network.model.manifest.name,
        "native_share": native_share(native),
        "matrix": lr.shape[1:],
        "patches": len(places),
        "std_over_mean": {name: value / mean for name, value in rms.items()},
        "ratio": rms["network"] / rms["sinc"],
        "ratio_95": interval(found),
        "lag_1": float(np.mean([alike(patch_of(lr, place, 1)) for place in places])),
        "share_no_higher": float(np.mean(found["network"] <= found["sinc"])),
        "places": places,
        "stds": {name: stds.tolist() for name, stds in found.items()},
    }
    return row, {"lr": lr, **images}


def draw(images: dict[str, Slices], place: Place, path: Path) -> None:
    """LR, sinc and the network about a flat patch, side by side; grey levels of the crop."""
    middle = place.y + PATCH // 2, place.x + PATCH // 2
    _, h, w = images["lr"].shape
    top, left = (
        int(np.clip(at - CROP // 2, 0, n - CROP)) for at, n in zip(middle, (h, w), strict=True)
    )
    panels = []
    for name, image in images.items():
        scale = 1 if name == "lr" else SCALE
        rows, columns = (slice(scale * a, scale * (a + CROP)) for a in (top, left))
        panels.append(image[place.z, rows, columns].repeat(ZOOM * SCALE // scale, 0))
        panels[-1] = panels[-1].repeat(ZOOM * SCALE // scale, 1)
    low, high = np.percentile(panels[0], [1, 99])
    gap = np.full((len(panels[0]), ZOOM), 255, np.uint8)
    grey = [(np.clip((p - low) / (high - low), 0, 1) * 255).astype(np.uint8) for p in panels]
    sheet = np.concatenate([grey[0], gap, grey[1], gap, grey[2]], axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(path, optimize=True)


def line(row: dict[str, Any]) -> str:
    """One row as text."""
    sinc, ours = row["std_over_mean"].values()
    low, high = row["ratio_95"]
    return (
        f"{row['volume']:32} {row['model']} {row['patches']:4} patches, lag 1 {row['lag_1']:.2f}, "
        f"std/mean: sinc {sinc:.4f}, network {ours:.4f}, ratio {row['ratio']:.3f} ({low:.3f} to "
        f"{high:.3f}), no higher in {row['share_no_higher']:.0%}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="validation volumes, NIfTI")
    parser.add_argument("--model", default="auto", help="x2 model (default: by contrast)")
    parser.add_argument("--slices", type=int, default=8, help="slices of each volume (default 8)")
    parser.add_argument("--json", type=Path, default=RESULT)
    parser.add_argument("--picture", help="start of the name of the volume that is drawn")
    parser.add_argument("--png", type=Path, help="picture of its flattest patch")
    args = parser.parse_args(argv)
    paths = sorted(args.folder.glob("*.nii*"))
    rows = []
    for path in paths:
        name = (
            auto_model(args.model, contrast_of(path.name)) if args.model == "auto" else args.model
        )
        with load_network(name) as network:
            row, images = measure(path, network, args.slices)
        rows.append(row)
        print(line(row), flush=True)
        if args.png and args.picture and path.name.startswith(args.picture):
            draw(images, row["places"][0], args.png)
    document = {
        "machine": record.machine(),
        "commit": record.commit(),
        "model": args.model,
        "slices": args.slices,
        "volumes": record.hashes(paths),
        "rows": rows,
    }
    record.write(args.json, document)


if __name__ == "__main__":
    main()
