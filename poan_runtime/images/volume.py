"""A volume in memory, and how one is read from a file."""

import contextlib
import dataclasses
import gzip
from pathlib import Path
from typing import Any, cast

import numpy as np
from nibabel.nifti1 import Nifti1Image
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray

from poan_runtime.errors import PoanError
from poan_runtime.files import WholeFile
from poan_runtime.geometry import Affine, spatial_shape
from poan_runtime.images.formats import NIFTI, open_source
from poan_runtime.images.source import ArraySource, Source


@dataclasses.dataclass(frozen=True, kw_only=True)
class Volume:
    """A volume in memory: ``data`` in voxel order, real values; ``affine`` to RAS+ mm, (4, 4).

    ``data`` has 2 to 7 axes; the fourth and later ones count volumes.

    >>> Volume(data=np.zeros((4, 5, 2), np.float32), affine=np.eye(4)).data.shape
    (4, 5, 2)
    """

    data: NDArray[np.float32]
    affine: Affine

    @classmethod
    def of(cls, image: SpatialImage) -> "Volume":
        """The real values and the affine of a nibabel image; nibabel raises what it cannot read.

        Raises PoanError where voxels are complex or RGB.
        """
        voxels = np.asarray(image.dataobj)
        if voxels.dtype.kind not in "biuf":
            name = "RGB" if voxels.dtype.fields else voxels.dtype.name
            raise PoanError(f"expected real or integer voxels, got {name}")
        return cls(data=np.asarray(voxels, np.float32), affine=np.asarray(image.affine))

    def to_nibabel(self) -> Nifti1Image:
        """A nibabel image of the same values, in scanner coordinates and mm.

        >>> Volume(data=np.zeros((4, 5, 2), np.float32), affine=np.eye(4)).to_nibabel().shape
        (4, 5, 2)
        """
        image = cast(Any, Nifti1Image)(self.data, self.affine)
        image.set_sform(self.affine, code="scanner")
        image.set_qform(self.affine, code="scanner")
        image.header.set_xyzt_units("mm", "sec")
        return cast(Nifti1Image, image)

    def save(self, path: str | Path) -> None:
        """Write a NIfTI file, .nii or .nii.gz, float32; whole or not at all.

        Raises PoanError on another ending, OSError where the disk does not take it.
        """
        path = Path(path)
        if not path.name.endswith(NIFTI.written):
            raise PoanError(f"{path}: expected a name that ends in {' or '.join(NIFTI.written)}")
        content = self.to_nibabel().to_bytes()
        with WholeFile(path) as file:
            file.write(gzip.compress(content, 6) if path.suffix == ".gz" else content)


def source_of(scan: Volume | SpatialImage | str | Path) -> Source | str | Path:
    """What `upscale` takes as a source: a path as it is, voxels in memory as an `ArraySource`.

    A nibabel image's file name is kept, which may tell the contrast. Raises PoanError on others.
    """
    if isinstance(scan, str | Path):
        return scan
    name = scan.get_filename() if isinstance(scan, SpatialImage) else None
    volume = Volume.of(scan) if isinstance(scan, SpatialImage) else scan
    if not isinstance(volume, Volume):
        kind = type(scan).__name__
        raise PoanError(f"expected a path, a nibabel image or a Volume(data, affine), got {kind}")
    source = ArraySource(volume.data, volume.affine)
    source.path = Path(name) if name else None
    return source


def read_volume(path: str | Path, volume: int = 0) -> Volume:
    """One whole 3D volume (or 2D image) as float32 real values, not-finite ones as they are.

    ``data`` is (x, y, z) in voxel order, or (x, y). ``volume`` counts along the fourth and later
    axes. Raises PoanError on a file that is not there, not readable, or damaged.

    Example::

        scan = poan_runtime.read_volume("scan.nii.gz")
        print(scan.data.shape, scan.affine)
    """
    with contextlib.closing(open_source(path)) as source:
        depth = spatial_shape(source.shape)[2]
        data = source.read_slices(2, 0, depth, volume).transpose(1, 2, 0)  # (z, x, y) -> (x, y, z)
        shape = source.shape[:3]
        return Volume(data=np.asfortranarray(data).reshape(shape), affine=source.affine)
