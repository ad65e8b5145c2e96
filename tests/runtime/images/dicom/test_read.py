"""DICOM in: what becomes a volume, in which order, and what is refused."""

import importlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from poan_runtime.errors import PoanError
from poan_runtime.images.dicom.read import DicomSource, open_dicom
from poan_runtime.images.dicom.recognise import is_dicom
from poan_runtime.images.dicom.series import choose, find_series, table
from tests.runtime.images.conformance import check_source
from tests.runtime.images.dicom.made import ROOT, MakeSeries, converted

REAL = [
    ("philips_brainix_flair", None, 0),
    ("made_brainix_flair_j2k", None, 0),
    ("philips_enhanced_b0", "801a", 0),
    ("philips_enhanced_b0", "801b", 1),
    ("philips_pcasl_classic", None, 0),
    ("philips_pcasl_enhanced", None, 0),
    ("siemens_xa10_enhanced", None, 0),
]
"""Folder, series and which of dcm2niix's files it is."""


def whole(source: DicomSource, axis: int = 2) -> NDArray[np.float32]:
    """Every volume, (x, y, z, volumes), read across ``axis``."""
    volumes = source.shape[3] if len(source.shape) > 3 else 1
    parts = [source.read_slices(axis, 0, source.shape[axis], v) for v in range(volumes)]
    return np.stack([np.moveaxis(part, 0, axis) for part in parts], axis=-1)


def refused(folder: Path, series: str | None = None) -> str:
    with pytest.raises(PoanError) as error:
        open_dicom(folder, series)
    message = str(error.value)
    assert "\n" not in message
    assert "ecret" not in message.lower()
    return message


@pytest.mark.slow
@pytest.mark.parametrize(("name", "series", "which"), REAL)
def test_real_series_have_the_integers_and_the_affine_of_dcm2niix(
    real_series: Path, tmp_path: Path, name: str, series: str | None, which: int
) -> None:
    reference = nib.load(converted(real_series / name, tmp_path / "nii", "-p", "n")[which])
    stored = np.asanyarray(reference.dataobj.get_unscaled())
    with open_dicom(real_series / name, series) as source:
        assert source.shape == stored.shape
        assert source.dtype == stored.dtype
        assert source.slope == reference.dataobj.slope
        assert source.inter == reference.dataobj.inter
        real = np.asarray(reference.dataobj, np.float32).reshape(*stored.shape[:3], -1)
        assert np.array_equal(whole(source), real)
        # dcm2niix takes the distance of the first two slices in float32: 22 slices of 6 mm
        # add up to 9e-5 mm
        np.testing.assert_allclose(source.affine, reference.affine, atol=1e-4)


@pytest.mark.parametrize("orientation", ["axial", "sagittal", "coronal", "oblique"])
@pytest.mark.parametrize("acquisition", ["2D", "3D"])
@pytest.mark.parametrize("descending", [False, True])
def test_made_series_of_any_orientation_lie_as_dcm2niix_lays_them(
    make_series: MakeSeries,
    tmp_path: Path,
    orientation: str,
    acquisition: str,
    descending: bool,
) -> None:
    row, column = {
        "axial": ([1, 0, 0], [0, 1, 0]),
        "sagittal": ([0, 1, 0], [0, 0, -1]),
        "coronal": ([1, 0, 0], [0, 0, -1]),
        "oblique": ([0.96, 0.28, 0], [-0.168, 0.576, -0.8]),
    }[orientation]
    normal = np.cross(row, column) * (-1 if descending else 1)

    def turned(ds: Dataset, k: int, volume: int) -> Dataset:
        ds.ImageOrientationPatient = [*map(str, (*row, *column))]
        ds.ImagePositionPatient = [f"{value:.6f}" for value in np.array([9, 8, 7]) + 4 * k * normal]
        ds.MRAcquisitionType = acquisition
        return ds

    folder = make_series(slices=5, change=turned)
    reference = nib.load(converted(folder, tmp_path / "nii")[0])
    with open_dicom(folder) as source:
        assert source.shape == reference.shape
        for axis in range(3):
            assert np.array_equal(whole(source, axis)[..., 0], np.asarray(reference.dataobj))
        # positions are written with six decimals, and NIfTI holds float32
        np.testing.assert_allclose(source.affine, reference.affine, atol=2e-5)


def test_time_points_become_volumes_in_their_order(make_series: MakeSeries) -> None:
    def timed(ds: Dataset, k: int, volume: int) -> Dataset:
        ds.TemporalPositionIdentifier = 3 - volume
        ds.PixelData = np.full((12, 10), 100 * (3 - volume) + k, "<u2").tobytes()
        return ds

    with open_dicom(make_series(slices=4, volumes=3, change=timed)) as source:
        assert source.shape == (10, 12, 4, 3)
        values = whole(source)[0, 0]
    assert values.tolist() == [[100 * v + k for v in (1, 2, 3)] for k in range(4)]


def test_echoes_and_components_of_one_series_are_told_apart(make_series: MakeSeries) -> None:
    def mixed(ds: Dataset, k: int, volume: int) -> Dataset:
        ds.EchoTime = "90" if volume < 1 else "20"
        if volume == 2:
            ds.ImageType = ["ORIGINAL", "PRIMARY", "P", "ND"]
        return ds

    folder = make_series(volumes=3, change=mixed)
    found, broken = find_series(folder)
    assert broken == []
    assert [one.key for one in found] == ["7a", "7b", "7c"]
    assert [one.first.component for one in found] == ["magnitude", "magnitude", "phase"]
    assert "name one with --series: 7a, 7b, 7c" in refused(folder)
    assert choose(found, "7b", folder) is found[1]
    assert "expected one of 7a, 7b, 7c" in refused(folder, "9")


def test_a_localizer_is_passed_over_and_said(make_series: MakeSeries) -> None:
    folder = make_series()

    def scout(ds: Dataset, k: int, volume: int) -> Dataset:
        ds.SeriesInstanceUID, ds.SeriesNumber = ROOT + "9", 1
        ds.SOPInstanceUID += ".9"
        ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        return ds

    make_series(name="series/scout", slices=2, change=scout)
    with open_dicom(folder) as source:
        assert source.shape == (10, 12, 4)
        assert source.warnings == ("series 1: not asked for",)
    assert [line.split()[:3] for line in table(find_series(folder)[0])] == [
        ["1", "10x12x2", "localizer"],
        ["7", "10x12x4", "magnitude"],
    ]


def test_a_repeated_instance_counts_once_and_is_said(make_series: MakeSeries) -> None:
    folder = make_series()
    (folder / "copy.dcm").write_bytes((folder / "001.dcm").read_bytes())
    with open_dicom(folder) as source:
        assert source.shape == (10, 12, 4)
        assert source.warnings == ("1 files repeat an image and are left out",)


def test_a_missing_slice_is_refused_with_its_place(make_series: MakeSeries) -> None:
    folder = make_series(slices=6, change=lambda ds, k, v: None if k == 3 else ds)
    assert refused(folder) == "series 7: 1 slices are missing, the first behind slice 3 of 5"


def test_a_time_point_that_lacks_a_slice_is_refused(make_series: MakeSeries) -> None:
    folder = make_series(volumes=2, change=lambda ds, k, v: None if (k, v) == (2, 1) else ds)
    assert "slice 3 of 4 is there 1 times and others 2 times" in refused(folder)


def test_varying_spacing_is_refused(make_series: MakeSeries) -> None:
    def uneven(ds: Dataset, k: int, volume: int) -> Dataset:
        ds.ImagePositionPatient[2] = str([0, 4, 9.1, 13][k])
        return ds

    assert "slices are 3.9 to 5.1 mm apart" in refused(make_series(change=uneven))


def test_a_tilted_gantry_is_refused_with_its_angle(make_series: MakeSeries) -> None:
    def leaning(ds: Dataset, k: int, volume: int) -> Dataset:
        ds.ImagePositionPatient[1] = str(-20 + k)
        return ds

    # one mm aside for each 4 mm up
    assert "leans by 14.0 degrees" in refused(make_series(change=leaning))


def test_mixed_orientations_are_series_of_their_own(make_series: MakeSeries) -> None:
    def mixed(ds: Dataset, k: int, volume: int) -> Dataset:
        if volume:
            ds.ImageOrientationPatient = ["0", "1", "0", "0", "0", "-1"]
        return ds

    folder = make_series(volumes=2, change=mixed)
    assert "holds 2 series; name one with --series: 7a, 7b" in refused(folder)


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("ImageOrientationPatient", "no orientation or pixel spacing"),
        ("ImagePositionPatient", "does not say where it lies"),
        ("PixelSpacing", "no orientation or pixel spacing"),
        ("Rows", "expected 1 to 4096 rows and columns, got 0 and 10"),
        ("SOPInstanceUID", "neither which image nor which series"),
        ("PixelData", "lacks PixelData"),
        ("PixelRepresentation", "lacks PixelRepresentation"),
    ],
)
def test_a_missing_element_is_one_line(make_series: MakeSeries, missing: str, words: str) -> None:
    def without(ds: Dataset, k: int, volume: int) -> Dataset:
        return ds

    folder = make_series(change=without)
    for file in folder.iterdir():
        ds = pydicom.dcmread(file)
        del ds[missing]
        ds.save_as(file)
    assert words in refused(folder)


def test_signed_and_rescaled_values_are_real_ones(make_series: MakeSeries) -> None:
    def signed(ds: Dataset, k: int, volume: int) -> Dataset:
        ds.PixelRepresentation, ds.BitsStored, ds.HighBit = 1, 16, 15
        ds.RescaleSlope, ds.RescaleIntercept = "0.5", "-3"
        ds.PixelData = np.full((12, 10), -7 - k, "<i2").tobytes()
        return ds

    with open_dicom(make_series(change=signed)) as source:
        assert source.dtype == np.int16
        assert (source.slope, source.inter) == (0.5, -3.0)
        assert whole(source)[0, 0, :, 0].tolist() == [-6.5, -7.0, -7.5, -8.0]


def test_slices_of_several_scales_are_real_values(make_series: MakeSeries) -> None:
    def scaled(ds: Dataset, k: int, volume: int) -> Dataset:
        ds.RescaleSlope, ds.RescaleIntercept = str(k + 1), "0"
        ds.PixelData = np.full((12, 10), 10, "<u2").tobytes()
        return ds

    with open_dicom(make_series(change=scaled)) as source:
        assert source.dtype == np.float32
        assert (source.slope, source.inter) == (1.0, 0.0)
        assert whole(source)[0, 0, :, 0].tolist() == [10, 20, 30, 40]


def test_large_unsigned_values_stay_unsigned(make_series: MakeSeries) -> None:
    def large(ds: Dataset, k: int, volume: int) -> Dataset:
        ds.BitsStored, ds.HighBit = 16, 15
        ds.PixelData = np.full((12, 10), 40000, "<u2").tobytes()
        return ds

    with open_dicom(make_series(change=large)) as source:
        assert source.dtype == np.uint16
        assert whole(source).max() == 40000


def test_an_inverted_image_keeps_its_integers_as_dcm2niix_does_and_is_said(
    make_series: MakeSeries, tmp_path: Path
) -> None:
    def inverted(ds: Dataset, k: int, volume: int) -> Dataset:
        ds.PhotometricInterpretation = "MONOCHROME1"
        ds.RescaleSlope, ds.RescaleIntercept = "2", "-3"
        return ds

    folder = make_series(change=inverted)
    reference = nib.load(converted(folder, tmp_path / "nii", "-p", "n")[0])
    with open_dicom(folder) as source:
        assert (source.slope, source.inter) == (2.0, -3.0)
        assert np.array_equal(whole(source)[..., 0], np.asarray(reference.dataobj))
        assert source.warnings[0].startswith("MONOCHROME1")


def test_a_mosaic_is_refused_with_what_to_do(make_series: MakeSeries) -> None:
    def mosaic(ds: Dataset, k: int, volume: int) -> Dataset:
        ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
        return ds

    assert "a mosaic of many slices in one image; convert" in refused(make_series(change=mosaic))


@pytest.mark.parametrize(("bits", "signed"), [(12, False), (16, False), (12, True), (16, True)])
def test_the_type_is_that_of_dcm2niix(
    make_series: MakeSeries, tmp_path: Path, bits: int, signed: bool
) -> None:
    def coded(ds: Dataset, k: int, volume: int) -> Dataset:
        ds.BitsStored, ds.HighBit, ds.PixelRepresentation = bits, bits - 1, int(signed)
        return ds

    folder = make_series(change=coded)
    reference = nib.load(converted(folder, tmp_path / "nii", "-p", "n")[0])
    with open_dicom(folder) as source:
        assert source.dtype == reference.get_data_dtype()


@pytest.mark.parametrize(
    ("elements", "native"),
    [
        ({"AcquisitionMatrix": [0, 256, 192, 0]}, (256, 192)),
        ({"AcquisitionMatrix": [64, 0, 0, 48]}, (48, 64)),
        ({"AcquisitionMatrix": [64, 0, 0, 48], "PercentPhaseFieldOfView": "75"}, (64, 64)),
        ({"AcquisitionMatrix": [0, 256, 191, 0], "PercentSampling": "80"}, (256, 191)),
        ({"AcquisitionMatrix": [0, 256, 256, 0], "PercentSampling": "80"}, (256, 205)),
        ({}, None),
        ({"AcquisitionMatrix": [0, 0, 0, 0]}, None),
    ],
)
def test_the_acquired_matrix_is_read_from_the_header(
    make_series: MakeSeries, elements: dict[str, Any], native: tuple[int, int] | None
) -> None:
    def acquired(ds: Dataset, k: int, volume: int) -> Dataset:
        for name, value in elements.items():
            setattr(ds, name, value)
        return ds

    with open_dicom(make_series(change=acquired)) as source:
        assert source.native_matrix == native
        assert source.native_shape == (native and (native[1], native[0], 4))


def test_the_real_acquired_matrix_is_where_the_spectrum_ends(real_series: Path) -> None:
    with open_dicom(real_series / "philips_brainix_flair") as source:
        assert source.native_matrix == (256, 205)  # rows, columns of 288
        slices = source.read_slices(2, 8, 14)  # (n, columns, rows)
    spectrum = np.abs(np.fft.fftshift(np.fft.fft2(slices), axes=(1, 2))).mean(axis=0)
    for profile, lines in ((spectrum.mean(axis=1), 205), (spectrum.mean(axis=0), 256)):
        edge, floor = 144 + lines // 2, profile[-8:].mean()
        assert profile[edge - 12] > 3 * floor  # 3.3 and 3.5 measured: the filter rolls off
        assert profile[edge + 12] < 1.2 * floor  # 1.06 and 1.00 measured: noise alone


def test_a_folder_without_dicom_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    assert not is_dicom(tmp_path)
    assert refused(tmp_path).endswith("there is no DICOM file in it")


def test_the_small_multi_frame_without_geometry_is_refused(real_series: Path) -> None:
    line = refused(real_series / "pydicom_emri_small")
    assert "10 frames, and the position of none of them (and 5 more)" in line


def test_an_image_alone_is_a_volume_of_one_slice(make_series: MakeSeries) -> None:
    with open_dicom(make_series() / "002.dcm") as source:
        assert source.shape == (10, 12, 1)
        assert np.linalg.norm(source.affine[:3, 2]) == pytest.approx(4.0, abs=1e-12)


def test_nothing_of_the_plain_runtime_imports_pydicom() -> None:
    names = ["poan_runtime", "poan_runtime.images.nifti.read", "poan_runtime.super_resolve"]
    for name in names:
        assert "pydicom" not in vars(importlib.import_module(name))


def test_the_series_does_what_every_source_must(make_series: MakeSeries, tmp_path: Path) -> None:
    folder = make_series(slices=5, volumes=2, shape=(6, 4))
    expected = np.asarray(nib.load(converted(folder, tmp_path / "nii")[0]).dataobj)
    check_source(open_dicom(folder), expected)
