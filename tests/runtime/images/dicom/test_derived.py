"""DICOM out: the derived series, judged by dciodvfy, by dcm2niix and by what it must say."""

import contextlib
import dataclasses
import datetime
import io
import itertools
import subprocess
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from poan_runtime.errors import PoanError
from poan_runtime.geometry import Affine, Geometry
from poan_runtime.images.dicom.burn_in import ROWS_PER_LINE, SMALLEST, burn, written
from poan_runtime.images.dicom.derived import DerivedSeries
from poan_runtime.images.dicom.provenance import NOTICE, Identity, Provenance
from poan_runtime.images.dicom.read import open_dicom
from poan_runtime.images.dicom.series import find_series, table
from tests.runtime.images.conformance import check_sink
from tests.runtime.images.dicom.made import MakeSeries, converted, faults, program

MADE_BY = Provenance(version="0.1", model="t2_x2", model_sha256="ab" * 32, scale=2)
REAL = [
    ("philips_brainix_flair", None),
    ("philips_enhanced_b0", "801a"),
    ("philips_enhanced_b0", "801b"),
    ("philips_pcasl_classic", None),
    ("philips_pcasl_enhanced", None),
    ("siemens_xa10_enhanced", None),
]


def derive(
    folder: Path, out: Path, series: str | None = None, axis: Any = None, **options: Any
) -> tuple[list[Path], NDArray[np.float32], Affine]:
    """Repeat each voxel twice in-plane; the files, the fine voxels (x, y, z, v), their affine."""
    with open_dicom(folder, series) as source:
        geometry = Geometry.derive(source.shape, source.affine, scale=2, grid="centre", axis=axis)
        axis = geometry.axis
        volumes = []
        with contextlib.closing(DerivedSeries(source, out, MADE_BY, **options)) as sink:
            sink.begin(geometry)
            for volume in range(geometry.volumes):
                fine = source.read_slices(axis, 0, source.shape[axis], volume)
                fine = fine.repeat(2, axis=1).repeat(2, axis=2)
                for start in range(0, len(fine), 3):
                    sink.write(volume, start, fine[start : start + 3])
                volumes.append(np.moveaxis(fine, 0, axis))
            sink.finish()
    return sorted(out.iterdir()), np.stack(volumes, axis=-1), geometry.fine_affine


@pytest.mark.slow
@pytest.mark.parametrize(("name", "series"), REAL)
def test_real_series_come_back_from_dcm2niix_with_our_affine_and_values(
    real_series: Path, tmp_path: Path, name: str, series: str | None
) -> None:
    files, fine, affine = derive(real_series / name, tmp_path / "out", series)
    read = nib.load(converted(tmp_path / "out", tmp_path / "nii", "-p", "n")[0])
    np.testing.assert_allclose(read.affine, affine, atol=1e-4)  # the figure
    assert np.array_equal(np.asarray(read.dataobj, np.float32).reshape(fine.shape), fine)
    assert faults(files) <= faults([*(real_series / name).iterdir()])


@pytest.mark.parametrize(("name", "series"), [REAL[1], REAL[2], REAL[4]])
def test_an_enhanced_source_can_stay_one_instance(
    real_series: Path, tmp_path: Path, name: str, series: str | None
) -> None:
    files, fine, affine = derive(real_series / name, tmp_path / "out", series, enhanced=True)
    (made,) = files
    assert faults(files) <= faults([*(real_series / name).iterdir()])
    read = nib.load(converted(tmp_path / "out", tmp_path / "nii", "-p", "n")[0])
    ours = nib.as_closest_canonical(nib.Nifti1Image(fine[..., 0], affine))
    theirs = nib.as_closest_canonical(read)  # not told that a scan was 3D, it does not turn it
    np.testing.assert_allclose(theirs.affine, ours.affine, atol=1e-4)
    assert np.array_equal(np.asarray(theirs.dataobj, np.float32), np.asarray(ours.dataobj))
    header = pydicom.dcmread(made)
    assert header.ImageType[0] == "DERIVED"
    frames = header.PerFrameFunctionalGroupsSequence
    assert len(frames) == header.NumberOfFrames == fine.shape[2]
    sources = [f.DerivationImageSequence[0].SourceImageSequence[0] for f in frames]
    assert len({item.ReferencedFrameNumber for item in sources}) == fine.shape[2]
    assert {f.MRImageFrameTypeSequence[0].FrameType[0] for f in frames} == {"DERIVED"}
    assert NOTICE in header.ImageComments


def test_enhanced_output_of_anything_else_is_refused_before_any_work(
    make_series: MakeSeries, real_series: Path, tmp_path: Path
) -> None:
    with pytest.raises(PoanError, match="expected Enhanced MR input"):
        derive(make_series(), tmp_path / "out", enhanced=True)
    with pytest.raises(PoanError, match="lies in several files"):
        derive(real_series / "siemens_xa10_enhanced", tmp_path / "out", enhanced=True)
    with pytest.raises(PoanError, match="cut across another axis"):
        derive(real_series / "philips_enhanced_b0", tmp_path / "out", "801a", 0, enhanced=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_conforming_series_has_no_fault_across_any_axis(
    make_series: MakeSeries, tmp_path: Path, axis: int
) -> None:
    folder = make_series(slices=5, shape=(64, 48))
    assert faults([*folder.iterdir()]) == set()
    files, fine, affine = derive(folder, tmp_path / "out", axis=axis)
    assert faults(files) == set()
    read = nib.load(converted(tmp_path / "out", tmp_path / "nii")[0])
    np.testing.assert_allclose(read.affine, affine, atol=1e-4)
    assert np.array_equal(np.asarray(read.dataobj), fine[..., 0])


def test_the_sequences_say_what_was_done_and_from_what(
    make_series: MakeSeries, tmp_path: Path
) -> None:
    folder = make_series()
    files, _, _ = derive(folder, tmp_path / "out")
    source, derived = pydicom.dcmread(folder / "000.dcm"), pydicom.dcmread(files[0])
    assert [*derived.ImageType] == ["DERIVED", "SECONDARY", "OTHER"]
    code = derived.DerivationCodeSequence[0]
    assert (code.CodeValue, code.CodingSchemeDesignator) == ("113085", "DCM")
    item = derived.SourceImageSequence[0]
    assert item.ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert item.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
    equipment = derived.ContributingEquipmentSequence[-1]
    assert equipment.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
    assert "ab" * 32 in equipment.SoftwareVersions
    for text in (derived.DerivationDescription, derived.ImageComments):
        assert NOTICE in text
        assert "model t2_x2" in text
        assert "x2" in text
    assert derived.SeriesDescription == "T2 axial SR x2 AI"
    assert (derived.SeriesNumber, derived.BurnedInAnnotation) == (1007, "NO")
    assert derived.LossyImageCompression == "00"
    for kept in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "WindowCenter"):
        assert derived[kept].value == source[kept].value
    uids = {pydicom.dcmread(file).SOPInstanceUID for file in files}
    assert len(uids) == 4
    assert source.SOPInstanceUID not in uids
    assert (
        {pydicom.dcmread(file).SeriesInstanceUID for file in files}
        == {derived.SeriesInstanceUID}
        != {source.SeriesInstanceUID}
    )


def test_where_one_of_several_must_be_named_poans_own_is_not_among_them(
    make_series: MakeSeries, tmp_path: Path
) -> None:
    def mixed(ds: Dataset, k: int, volume: int) -> Dataset:
        if volume:
            ds.ImageOrientationPatient = ["0", "1", "0", "0", "0", "-1"]
        return ds

    (tmp_path / "both").mkdir()
    derive(make_series(), tmp_path / "both/out")
    make_series(volumes=2, change=mixed).rename(tmp_path / "both/in")
    with pytest.raises(PoanError, match=r"3 series, 1 of them by poan; .* --series: 7a, 7b$"):
        open_dicom(tmp_path / "both")


def test_a_result_beside_its_source_is_not_taken_for_a_source(
    make_series: MakeSeries, tmp_path: Path
) -> None:
    folder = make_series()
    derive(folder, folder / "out")
    series, _ = find_series(folder)
    assert [one.kind for one in series] == ["magnitude", "by poan"]
    assert "by poan" in table(series)[1]
    with open_dicom(folder) as source:
        assert source.stack.key == series[0].key
        assert not any("poan made" in warning for warning in source.warnings)
    with open_dicom(folder / "out") as source:
        assert "poan made this series; what is super-resolved is its result" in source.warnings


def test_the_figure_of_faithfulness_is_said_where_there_is_one(
    make_series: MakeSeries, tmp_path: Path
) -> None:
    with open_dicom(make_series()) as source:
        sink = DerivedSeries(source, tmp_path / "out", MADE_BY)
        with contextlib.closing(sink):
            sink.begin(Geometry.derive(source.shape, source.affine, scale=1, grid="centre"))
            sink.finish("0.8 % of the measurement changed")
    said = pydicom.dcmread(tmp_path / "out/00001.dcm").DerivationDescription
    assert "0.8 % of the measurement changed" in said


def test_stale_and_private_elements_are_dropped(make_series: MakeSeries, tmp_path: Path) -> None:
    def stale(ds: Dataset, k: int, volume: int) -> Dataset:
        ds.AcquisitionMatrix = [0, 10, 12, 0]
        ds.SmallestImagePixelValue, ds.LargestImagePixelValue = 0, 999
        ds.add_new(0x60000010, "US", 12)
        ds.add_new(0x00291010, "OB", b"CSA")
        item = Dataset()
        item.add_new(0x00291011, "LO", "private, nested")
        ds.ReferencedImageSequence = [item]
        return ds

    files, _, _ = derive(make_series(change=stale), tmp_path / "out")
    derived = pydicom.dcmread(files[0])
    for name in ("AcquisitionMatrix", "SmallestImagePixelValue", "LargestImagePixelValue"):
        assert name not in derived
    assert 0x60000010 not in derived
    assert not any(element.tag.is_private for element in derived.iterall())


@pytest.mark.parametrize("how", ["flag", "syntax"])
def test_lossy_compression_once_stays_said(
    make_series: MakeSeries, tmp_path: Path, how: str
) -> None:
    folder = make_series(shape=(64, 64))
    for file in folder.iterdir():
        ds = pydicom.dcmread(file)
        if how == "flag":
            ds.LossyImageCompression = "01"
        else:
            ds.compress(pydicom.uid.JPEGLSNearLossless, jls_error=1)
        ds.save_as(file)
    files, _, _ = derive(folder, tmp_path / "out")
    assert pydicom.dcmread(files[0]).LossyImageCompression == "01"


def test_uids_repeat_with_a_seed_and_only_then(make_series: MakeSeries, tmp_path: Path) -> None:
    folder = make_series()

    def uids(name: str, **options: Any) -> list[str]:
        files, _, _ = derive(folder, tmp_path / name, **options)
        return [pydicom.dcmread(file).SOPInstanceUID for file in files]

    seeded = uids("a", identity=Identity(seed="ward 3"))
    assert uids("b", identity=Identity(seed="ward 3")) == seeded
    assert uids("c", identity=Identity(seed="ward 4")) != seeded
    rooted = uids("d", identity=Identity(root="1.2.826.0.1.3680043.10.1"))
    assert all(uid.startswith("1.2.826.0.1.3680043.10.1.") for uid in rooted)
    assert uids("e") != uids("f")


def test_words_are_burnt_in_and_said_on_request(make_series: MakeSeries, tmp_path: Path) -> None:
    folder = make_series(shape=(64, 128))
    files, fine, _ = derive(folder, tmp_path / "out", burn_in=True)
    derived = pydicom.dcmread(files[0])
    assert derived.BurnedInAnnotation == "YES"
    plain = fine[:, ::-1, 0, 0].T  # (rows, columns)
    changed = (derived.pixel_array != plain).nonzero()[0]
    assert changed.size > 100
    assert changed.min() > 128 - 20  # one line below 128 rows


@pytest.mark.parametrize("side", [96, 128, 320])
def test_burnt_in_words_keep_every_stroke_of_their_letters(side: int) -> None:
    size = max(SMALLEST, side // ROWS_PER_LINE)
    strokes = sum(written(word, size, side).sum() for word in NOTICE.split())
    plane = burn(np.zeros((side, side), np.uint16), NOTICE)
    assert strokes > 400
    assert plane.sum() == strokes  # lines are broken, nothing is squeezed


def test_signed_rescaled_and_inverted_sources_keep_their_real_values(
    make_series: MakeSeries, tmp_path: Path
) -> None:
    def odd(ds: Dataset, k: int, volume: int) -> Dataset:
        ds.PixelRepresentation, ds.BitsStored, ds.HighBit = 1, 16, 15
        ds.RescaleSlope, ds.RescaleIntercept = "0.5", "-3"
        ds.PhotometricInterpretation = "MONOCHROME1"
        ds.PixelData = np.full((12, 10), -7 - k, "<i2").tobytes()
        return ds

    _, fine, _ = derive(make_series(change=odd), tmp_path / "out")
    with open_dicom(tmp_path / "out") as again:
        assert np.array_equal(again.read_slices(2, 0, 4), np.moveaxis(fine[..., 0], 2, 0))
        assert again.stack.first.inverted


def test_nothing_is_left_of_a_failed_run_and_no_folder_is_replaced(
    make_series: MakeSeries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = make_series(), tmp_path / "out"
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").write_text("mine")
    with pytest.raises(PoanError, match="expected a new or an empty folder"):
        derive(folder, tmp_path / "full")

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr("poan_runtime.images.dicom.derived.save", full)
    with pytest.raises(PoanError, match="No space left"):
        derive(folder, out)
    assert sorted(tmp_path.iterdir()) == before


def test_dcmtk_reads_the_derived_images(make_series: MakeSeries, tmp_path: Path) -> None:
    files, _, _ = derive(make_series(), tmp_path / "out")
    run = subprocess.run([program("dcmdump"), "-q", str(files[0])], capture_output=True, text=True)
    assert run.returncode == 0
    assert "Spatial resampling" in run.stdout


def test_the_derived_series_does_what_every_sink_must(
    make_series: MakeSeries, tmp_path: Path
) -> None:
    names = (tmp_path / str(n) for n in itertools.count())
    made: list[Path] = []

    def make() -> DerivedSeries:
        made.append(next(names))
        return DerivedSeries(source, made[-1], MADE_BY)

    def read() -> NDArray[Any] | None:
        if not made[-1].exists():
            return None
        planes = [pydicom.dcmread(file).pixel_array for file in sorted(made[-1].iterdir())]
        return np.reshape(planes, (2, 5, 6, 4))[:, :, ::-1].transpose(3, 2, 1, 0)

    with open_dicom(make_series(slices=5, volumes=2, shape=(6, 4))) as source:
        check_sink(make, read)


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0.dev0"])
def test_a_version_of_any_length_leaves_the_hash_as_long_as_dicom_lets_it_be(version: str) -> None:
    """An odd length is filled with a space, which pydicom counts to the last value."""
    made = dataclasses.replace(MADE_BY, version=version)
    file = io.BytesIO()
    pydicom.dcmwrite(
        file,
        made.equipment(datetime.datetime(2026, 1, 2)),
        implicit_vr=False,
        little_endian=True,
    )
    read = pydicom.dcmread(io.BytesIO(file.getvalue()), force=True)
    assert [*read.SoftwareVersions] == ["ab" * 32, version]
