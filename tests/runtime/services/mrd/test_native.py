"""Zero-filled images are seen at the matrix that was acquired."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from poan_runtime.intensity import intensity_unit
from poan_runtime.network import Network, Settings, load_network
from poan_runtime.services.mrd.header import Encoding, encodings, lines_of
from poan_runtime.services.mrd.native import NativeMatrices
from poan_runtime.services.mrd.wire import IMAGE_HEADER, Image
from poan_runtime.signal.kspace import not_below_zero, to_native, zero_fill
from poan_runtime.super_resolve import upscale_file
from tests.runtime.services.mrd.client import header, image, replies
from tests.runtime.services.mrd.conftest import Serve

NATIVE, FILLED, SLICES = (64, 80), (96, 80), 5
MM = (1.5 * FILLED[1], 2.0 * FILLED[0])
"""Field of view (x, y) of `image`."""
STATED = header((160, 64), (2 * MM[0], MM[1]), (80, 96), MM)
"""Twice as many columns over twice the field: readout oversampling. 64 of 96 phase lines."""


@pytest.fixture(scope="module")
def filled() -> NDArray[np.float32]:
    """White noise measured on 64x80, zero-filled to 96x80: (slices, rows, columns), positive."""
    measured = 500 + np.random.default_rng(3).normal(0, 20, (SLICES, *NATIVE))
    return zero_fill(measured.astype(np.float32), FILLED)


@pytest.fixture(scope="module")
def scanner(make_model: Callable[..., Path]) -> Iterator[Network]:
    with load_network(make_model(smooth=True, degradation={"method": "scanner"})) as network:
        yield network


@pytest.fixture(scope="module")
def expected(
    filled: NDArray[np.float32], scanner: Network, tmp_path_factory: pytest.TempPathFactory
) -> NDArray[np.float32]:
    """What poan-run makes of it on the native matrix, (slices, rows, columns)."""
    folder = tmp_path_factory.mktemp("scan")
    scan = nib.Nifti1Image(filled.transpose(1, 2, 0), np.diag([2, 1.5, 4, 1]))
    nib.save(scan, folder / "scan.nii")
    upscale_file(folder / "scan.nii", folder / "fine.nii", scanner, Settings(axis=2, native="on"))
    fine: NDArray[np.float32] = nib.load(folder / "fine.nii").get_fdata(dtype=np.float32)
    return fine.transpose(2, 0, 1)


def series(filled: NDArray[np.float32]) -> list[Any]:
    return [image(plane, n) for n, plane in enumerate(filled)]


def planes(answers: list[Any]) -> NDArray[np.float32]:
    return np.stack([answer.data[0, 0] for answer in sorted(answers, key=lambda a: a.slice)])


def test_by_the_measurements_header_the_voxels_are_those_of_poan_run(
    serve: Serve,
    scanner: Network,
    said: list[str],
    filled: NDArray[np.float32],
    expected: NDArray[np.float32],
) -> None:
    unit = intensity_unit(not_below_zero(to_native(filled, NATIVE), filled))
    answers = replies(serve(scanner, unit=unit), series(filled), STATED)
    assert expected.shape == (SLICES, 128, 160)
    assert np.array_equal(planes(answers), expected)
    for n, answer in enumerate(answers):
        assert [*answer.field_of_view] == [*MM, 4.0]
        assert [*answer.position] == [10.0, -20.0, 4.0 * n]
    assert said[0] == (
        "series 3: zero-filled, native 64x80 (rows: 64 of 96 acquired, says the header; "
        "columns: as it comes); super-resolved from there"
    )


def test_without_a_header_the_spectrum_of_the_whole_volume_tells(
    serve: Serve, scanner: Network, filled: NDArray[np.float32], expected: NDArray[np.float32]
) -> None:
    interleaved = [series(filled)[n] for n in (0, 2, 4, 1, 3)]
    answers = replies(serve(scanner, wait_volume=True), interleaved)
    assert [a.slice for a in answers] == [0, 2, 4, 1, 3]
    assert np.array_equal(planes(answers), expected)


def test_a_single_slice_is_taken_as_it_comes_and_a_line_says_that_it_looks_zero_filled(
    serve: Serve, scanner: Network, said: list[str], filled: NDArray[np.float32]
) -> None:
    answers = replies(serve(scanner), series(filled))
    assert {a.data.shape[-2:] for a in answers} == {(192, 160)}
    looks = [
        line for line in said if line.startswith("series 3: its first image looks zero-filled")
    ]
    assert len(looks) == 1
    assert "--wait-volume" in looks[0]


@pytest.mark.parametrize("native", ["off", "auto"])
def test_the_matrix_stays_where_told_and_for_a_model_of_bicubic_lr(
    serve: Serve,
    network: Network,
    scanner: Network,
    said: list[str],
    filled: NDArray[np.float32],
    native: Any,
) -> None:
    with_network = scanner if native == "off" else network
    port = serve(with_network, settings=Settings(native=native))
    (answer,) = replies(port, series(filled)[:1], STATED)
    assert answer.data.shape[-2:] == (192, 160)
    assert not any("zero-filled" in line for line in said)


def test_the_corner_moves_by_what_the_voxels_grew(
    serve: Serve, scanner: Network, filled: NDArray[np.float32]
) -> None:
    (answer,) = replies(serve(scanner, position="corner"), series(filled)[:1], STATED)
    # rows: 96 of 2 mm become 128 of 1.5 mm, the first centre moves from 1 to .75 mm
    np.testing.assert_allclose([*answer.position], [10 - 0.25 * 1.5, -20 - 0.25, 0.0])


def test_like_input_fills_up_to_scale_times_the_image(
    serve: Serve, scanner: Network, filled: NDArray[np.float32], expected: NDArray[np.float32]
) -> None:
    unit = intensity_unit(not_below_zero(to_native(filled, NATIVE), filled))
    port = serve(scanner, unit=unit, settings=Settings(like_input=True))
    (answer,) = replies(port, series(filled)[:1], STATED)
    assert np.array_equal(
        answer.data[0, 0], not_below_zero(zero_fill(expected[0], (192, 160)), filled)
    )


def found(data: NDArray[np.float32], head: bytes, scanner: Network) -> tuple[int, int]:
    """The matrix of a first image."""
    record = np.zeros((), IMAGE_HEADER)
    record["field_of_view"] = (240.0, 240.0, 4.0)
    matrices = NativeMatrices(scanner.model.manifest, Settings(), lambda line: None)
    matrices.read_header(head.decode())
    return matrices.of(Image(head=record[()], attributes="", data=data[None, None]))


def test_where_the_field_does_not_tell_a_turned_image_the_spectrum_does(scanner: Network) -> None:
    measured = 500 + np.random.default_rng(3).normal(0, 20, (1, 64, 96)).astype(np.float32)
    straight = zero_fill(measured, (96, 96))[0]
    square = header((192, 64), (480.0, 240.0), (96, 96), (240.0, 240.0))
    assert found(straight, square, scanner) == (64, 96)
    assert found(np.ascontiguousarray(straight.T), square, scanner) == (96, 64)


def test_a_header_that_counts_fewer_lines_than_the_spectrum_shows_throws_none_away(
    scanner: Network,
) -> None:
    measured = 500 + np.random.default_rng(3).normal(0, 20, (1, 64, 96)).astype(np.float32)
    few = header((96, 40), (240.0, 240.0), (96, 96), (240.0, 240.0))
    assert found(zero_fill(measured, (96, 96))[0], few, scanner) == (64, 96)


@pytest.mark.parametrize(
    ("encoded", "limits", "lines"),
    [
        ((512, 256), None, (256, 256)),
        ((512, 256), (0, 223, 96), (256, 256)),  # partial Fourier: 128 behind the centre
        ((512, 256), (0, 204, 102), (206, 256)),  # phase resolution of 80 %
        ((512, 256), (0, 300, 128), (256, 256)),  # beyond the matrix: not believed
        ((320, 200), None, (200, 160)),
    ],
)
def test_lines_of_the_header_are_those_over_the_images_field(
    encoded: tuple[int, int], limits: tuple[int, int, int] | None, lines: tuple[int, int]
) -> None:
    made = header(encoded, (480.0, 200.0), (256, 256), (240.0, 200.0), limits)
    assert lines_of(encodings(made.decode()), (240.0, 200.0)) == [lines]
    assert lines_of(encodings(made.decode()), (200.0, 240.0)) == [lines[::-1]]  # turned
    assert lines_of(encodings(made.decode()), (120.0, 120.0)) == []
    assert lines_of(encodings(made.decode()), (0.0, 0.0)) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (">cartesian<", ">spiral<"),
        ("<x>480.0</x>", "<x>0</x>"),
        ("<x>480.0</x>", ""),
        ("<x>480.0</x>", "<x>many</x>"),
        ("<x>480.0</x>", "<x>inf</x>"),
        ("</encoding>", ""),
    ],
)
def test_a_header_without_what_is_needed_says_nothing(old: str, new: str) -> None:
    made = header((512, 256), (480.0, 240.0), (256, 256), (240.0, 240.0)).decode()
    assert encodings(made) == (Encoding(density=(512 / 480, 256 / 240), field_mm=(240, 240)),)
    assert old in made, made
    assert encodings(made.replace(old, new)) == ()
