"""The Python interface."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import poan_runtime
from poan_runtime import geometry


def repeated(data: np.ndarray) -> np.ndarray:
    return data.repeat(2, 0).repeat(2, 1)


@pytest.mark.parametrize("shape", [(20, 18), (20, 18, 3), (20, 18, 3, 2)])
def test_a_path_and_a_volume_give_the_same(
    nearest_x2: Path, make_scan: Any, shape: tuple[int, ...]
) -> None:
    path = make_scan(shape=shape)
    image = nib.load(path)
    data = np.asarray(image.dataobj)
    from_path = poan_runtime.upscale(path, nearest_x2)
    volume = poan_runtime.Volume(data=data.astype(np.float32), affine=image.affine)
    from_volume = poan_runtime.upscale(volume, poan_runtime.load_network(nearest_x2))
    # Eight float32 roundings of values below 100.
    np.testing.assert_allclose(from_path.data, repeated(data), rtol=0, atol=5e-5)
    assert np.array_equal(from_path.data, from_volume.data)
    expected = geometry.upscaled_affine(image.affine, 2, 2, "centre")
    np.testing.assert_array_equal(from_path.affine, expected)
    np.testing.assert_array_equal(from_volume.affine, expected)


def test_the_kspace_grid_of_the_manifest_decides_the_affine(make_model: Any) -> None:
    volume = poan_runtime.Volume(data=np.ones((4, 4, 2), np.float32), affine=np.eye(4))
    fine = poan_runtime.upscale(volume, make_model(grid="kspace"))
    np.testing.assert_array_equal(fine.affine, np.diag([0.5, 0.5, 1, 1]))


def test_settings_are_obeyed(nearest_x2: Path) -> None:
    volume = poan_runtime.Volume(data=np.ones((4, 5, 6), np.float32), affine=np.eye(4))
    settings = poan_runtime.Settings(axis=0, self_ensemble=True)
    assert poan_runtime.upscale(volume, nearest_x2, settings).data.shape == (4, 10, 12)


def test_the_self_ensemble_averages_the_views(make_model: Any) -> None:
    data = np.random.default_rng(0).normal(size=(30, 30, 1)).astype(np.float32)
    volume = poan_runtime.Volume(data=data, affine=np.eye(4))
    model = make_model(smooth=True)
    once = poan_runtime.upscale(volume, model).data
    eight = poan_runtime.upscale(volume, model, poan_runtime.Settings(self_ensemble=True)).data
    # The kernel is symmetric: all views answer alike, up to the order of float32 sums below 4.
    np.testing.assert_allclose(eight, once, rtol=0, atol=4e-6)


def test_an_empty_array_is_refused(nearest_x2: Path) -> None:
    volume = poan_runtime.Volume(data=np.ones((4, 0, 6), np.float32), affine=np.eye(4))
    with pytest.raises(poan_runtime.PoanError, match=r"got shape \(4, 0, 6\)"):
        poan_runtime.upscale(volume, nearest_x2)


def test_names_are_imported_when_asked_for() -> None:
    for name in poan_runtime.__all__:
        assert getattr(poan_runtime, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing"):
        _ = poan_runtime.nothing
