"""The slice axis and the half-voxel rule."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from poan_runtime import geometry
from poan_runtime.errors import PoanError

Affine = geometry.Affine

affines = hnp.arrays(np.float64, (3, 4), elements=st.floats(-200, 200, width=32)).map(
    lambda top: np.vstack([top, [0, 0, 0, 1]])
)
scales = st.integers(1, 4)
axes = st.integers(0, 2)
shapes = st.tuples(*[st.integers(1, 500)] * 3)


@given(affines, shapes, scales, axes)
def test_the_field_of_view_stays_to_1e_9(
    affine: Affine, shape: tuple[int, int, int], scale: int, axis: int
) -> None:
    fine = geometry.upscaled_affine(affine, scale, axis, "centre")
    before = geometry.corners(affine, shape)
    after = geometry.corners(fine, geometry.upscaled_shape(shape, scale, axis))
    # Corners reach 3e5 units here and float64 resolves 6e-11 of that after a few sums.
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-9)


@given(affines, scales, axes, st.integers(0, 50))
def test_on_the_kspace_grid_every_scale_th_sample_is_a_coarse_one(
    affine: Affine, scale: int, axis: int, k: int
) -> None:
    fine = geometry.upscaled_affine(affine, scale, axis, "kspace")
    index = np.array([scale * k, scale * k, scale * k, 1.0])
    index[axis] = k
    np.testing.assert_allclose(fine @ index, affine @ [k, k, k, 1.0], rtol=0, atol=1e-9)


@given(affines, scales, axes, st.sampled_from(["centre", "kspace"]))
def test_downscaling_undoes_upscaling(
    affine: Affine, scale: int, axis: int, grid: geometry.Grid
) -> None:
    there = geometry.upscaled_affine(affine, scale, axis, grid)
    back = geometry.downscaled_affine(there, scale, axis, grid)
    np.testing.assert_allclose(back, affine, rtol=0, atol=1e-9)


def centroid_mm(image: np.ndarray, affine: Affine) -> np.ndarray:
    index = np.indices(image.shape).reshape(3, -1)
    weights = image.ravel() / image.sum()
    return np.asarray(affine[:3, :3] @ (index @ weights) + affine[:3, 3])


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_blobs_centroid_in_mm_survives_degrade_then_upscale(scale: int) -> None:
    rng = np.random.default_rng(1)
    affine = np.vstack([rng.normal(size=(3, 4)), [0, 0, 0, 1]])
    i, j, _ = np.indices((48, 48, 1))
    blob = np.exp(-((i - 20.3) ** 2 + (j - 26.8) ** 2) / 20)
    coarse = blob.reshape(48 // scale, scale, 48 // scale, scale, 1).mean(axis=(1, 3))
    coarse_affine = geometry.downscaled_affine(affine, scale, 2, "centre")
    fine = coarse.repeat(scale, 0).repeat(scale, 1)
    # Sampling a blob of 3 voxels' width every fourth one aliases 3e-6 of its first moment.
    for image, its_affine in (
        (coarse, coarse_affine),
        (fine, geometry.upscaled_affine(coarse_affine, scale, 2, "centre")),
    ):
        np.testing.assert_allclose(
            centroid_mm(image, its_affine), centroid_mm(blob, affine), rtol=0, atol=1e-5
        )
    wrong = geometry.upscaled_affine(coarse_affine, scale, 2, "kspace")
    assert np.linalg.norm(centroid_mm(fine, wrong) - centroid_mm(blob, affine)) > 0.3


@pytest.mark.parametrize(
    ("steps", "shape", "axis"),
    [
        ((0.9, 0.9, 5.0), (10, 10, 10), 2),
        ((5.0, 0.9, 0.9), (10, 10, 10), 0),
        ((1.0, 1.0, 1.0), (10, 10, 10), 2),
        ((1.05, 1.0, 1.0), (10, 10, 10), 2),
        ((1.2, 1.0, 1.0), (10, 10, 10), 0),
        ((1.0, 1.0, 0.8), (10, 10, 10), 1),
        ((0.9, 0.9, 5.0), (1, 10, 10), 0),
        ((5.0, 0.9, 0.9), (10, 10), 2),
        ((5.0, 0.9, 0.9), (1, 1, 1), 0),
    ],
)
def test_the_slice_axis_is_the_one_of_largest_spacing(
    steps: tuple[float, float, float], shape: tuple[int, ...], axis: int
) -> None:
    turn = np.deg2rad(10)  # so that y, not x, is nearer to superior-inferior
    tilt = np.array([[1, 0, 0], [0, np.cos(turn), -np.sin(turn)], [0, np.sin(turn), np.cos(turn)]])
    affine = np.eye(4)
    affine[:3, :3] = tilt @ np.diag(steps)
    assert geometry.slice_axis(affine, shape) == axis


def test_equal_spacings_are_decided_by_the_axis_nearest_to_superior_inferior() -> None:
    sagittal_storage = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])
    assert geometry.slice_axis(sagittal_storage, (256, 256, 160)) == 1
    assert geometry.slice_axis(sagittal_storage, (256, 256, 160), "sagittal") == 2
    assert geometry.slice_axis(sagittal_storage, (256, 256, 160), "0") == 0


def test_an_axis_that_cannot_be_told_or_does_not_exist_is_refused() -> None:
    with pytest.raises(PoanError, match="three positive spacings"):
        geometry.slice_axis(np.diag([1.0, 0, 1, 1]), (5, 5, 5))
    with pytest.raises(PoanError, match="got 'oblique'"):
        geometry.slice_axis(np.eye(4), (5, 5, 5), "oblique")
