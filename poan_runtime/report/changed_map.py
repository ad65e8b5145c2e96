"""Where the network changed what the scanner measured: a scan of LR - down(SR) on LR's voxels."""

from pathlib import Path

from poan_runtime.geometry import Geometry
from poan_runtime.images.nifti.header import plain_header
from poan_runtime.images.nifti.write import NiftiSink
from poan_runtime.super_resolve import Pair


class ChangedMap:
    """A `poan_runtime.super_resolve.Consumer` that writes the map as float32 NIfTI.

    Its matrix is the one that the network saw; values are in the scan's unit, positive where the
    scanner measured more than SR holds. `finish` lets it appear, `close` gives up what is not
    finished.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sink: NiftiSink | None = None

    def __call__(self, geometry: Geometry, pair: Pair) -> None:
        """Take one slab."""
        if pair.changed is None:
            return
        if self._sink is None:
            header = plain_header(geometry.shape, pair.changed.dtype, geometry.affine)
            self._sink = NiftiSink(self._path, header, note="poan: LR - down(SR)")
            self._sink.begin(
                Geometry.derive(
                    geometry.shape, geometry.affine, scale=1, grid="centre", axis=geometry.axis
                )
            )
        self._sink.write(pair.volume, pair.start, pair.changed)

    def finish(self) -> bool:
        """Let the map appear; False where the model has no rule for one."""
        if self._sink is None:
            return False
        self._sink.finish()
        return True

    def close(self) -> None:
        """Give up a map that is not finished."""
        if self._sink is not None:
            self._sink.close()
