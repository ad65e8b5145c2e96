"""Every real scan goes the way that a user's does, with a network that costs nothing."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import poan_runtime
from poan_runtime.geometry import corners, slice_axis
from poan_runtime.images.formats import open_source
from poan_runtime.images.source import ArraySink


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["val", "train/open", "train/research"])
def test_every_real_scan_keeps_its_slice_axis_and_its_field_of_view(
    shared_data: Path, make_model: Callable[..., Path], folder: str
) -> None:
    model = make_model(degradation={"method": "scanner"}, air_k=4.5)
    scans = sorted((shared_data / folder).glob("*.nii.gz"))
    assert scans
    with poan_runtime.load_network(model) as network:
        for path in scans:
            sink = ArraySink()
            with contextlib.closing(open_source(path)) as source:
                outcome = poan_runtime.upscale_file(source, sink, network)
                axis = slice_axis(source.affine, source.shape)
                field = corners(source.affine, source.shape)
            fine = outcome.geometry
            assert (fine.axis, fine.slices) == (axis, source.shape[axis]), path.name
            ours = corners(fine.fine_affine, fine.fine_shape)
            np.testing.assert_allclose(ours, field, atol=1e-3, err_msg=path.name)  # mm
            assert np.isfinite(sink.data).all(), path.name
