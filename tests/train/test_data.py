import shutil
import threading

import nibabel
import numpy as np
import pytest

from poan_runtime.errors import PoanError
from poan_runtime.files import working_folder
from poan_runtime.intensity import intensity_unit
from poan_runtime.signal.kspace import to_native
from poan_train import data
from poan_train.data import (
    Ahead,
    Pair,
    PatchSampler,
    cached_pair,
    fixed_tiles,
    hr_slices,
    load_pairs,
    to_true_resolution,
)
from poan_train.subjects import (
    EVERY,
    Source,
    contrast_of,
    find_sources,
    set_aside,
    split_by_subject,
    subject_of,
)
from tests.runtime.signal.phantom import acquire, anatomy


@pytest.mark.parametrize(
    ("name", "contrast"),
    [
        ("IXI002-Guys-0828-T2", "T2"),
        ("sub-01_acq-x_T1w", "T1"),
        ("FLAIR_openms_patient09", "FLAIR"),
        ("PD-scan", "PD"),
        ("T1", "T1"),
        ("xT2", None),
        ("T12_map", None),
        ("flair", "FLAIR"),
    ],
)
def test_contrast_is_a_word_of_the_file_name(name, contrast):
    assert contrast_of(name) == contrast


def test_studies_of_one_patient_are_one_subject():
    names = ["T1_openms_patient01_study1.nii.gz", "T1_openms_patient01_study2.nii.gz"]
    assert {subject_of(n) for n in names} == {"patient01"}
    assert subject_of("IXI002-Guys-0828-T2.nii.gz") == "IXI002"
    assert subject_of("mystery.nii") == "mystery"


@pytest.mark.parametrize(
    ("names", "who"),
    [
        (["BraTS2021_00001_t1", "BraTS2021_00001_t2", "BraTS2021_00001_t1ce"], "BraTS2021_00001"),
        (["OAS1_0001_MR1", "OAS1_0001_MR2"], "OAS1_0001"),
        (["100307_T1w", "100307_T2w"], "100307"),
        (["S01_ses1", "S01_ses2", "T2_S01_session-3_ax", "S01_run2"], "S01"),
        (["knee7_study1_cor", "knee7_study2_sag", "PD_knee7_axial", "FLAIR-knee7_tra"], "knee7"),
        (["T1_sub-gbm1_gd", "sub-gbm1_T2w"], "sub-gbm1"),
    ],
)
def test_one_persons_files_are_one_subject_whatever_contrast_session_or_plane(names, who):
    assert {subject_of(f"{name}.nii.gz") for name in names} == {who}


def test_different_people_stay_different_and_a_name_is_never_emptied():
    assert subject_of("BraTS2021_00001_t1.nii") != subject_of("BraTS2021_00002_t1.nii")
    assert subject_of("case1_t1.nii") != subject_of("case2_t1.nii")
    assert subject_of("T1_coral_cora.nii") == "coral_cora"
    assert subject_of("T1.nii.gz") == "T1"


def sources(tmp_path, names):
    return [Source(path=tmp_path / n, contrast="T2", subject=subject_of(n)) for n in names]


def test_no_subject_is_in_both_parts_of_a_split(tmp_path):
    files = sources(tmp_path, [f"T2_patient{i // 2}_study{i % 2}.nii" for i in range(20)])
    train, held_out = split_by_subject(files, 0.2)
    assert {s.subject for s in train} & {s.subject for s in held_out} == set()
    assert len(train) + len(held_out) == 20
    assert len({s.subject for s in held_out}) == 2


def test_ixi_is_split_500_70_6_in_order_of_subject_number(tmp_path):
    files = sources(tmp_path, [f"IXI{i:03d}-Guys-0001-T2.nii.gz" for i in range(2, 578)])
    train, held_out = split_by_subject(files, 0.1)
    assert len(train) == 500
    assert train[-1].subject == "IXI501"
    assert [s.subject for s in held_out] == [f"IXI{i}" for i in range(572, 578)]


def test_files_are_found_by_contrast_and_a_table_overrides_their_names(scan_folder, tmp_path):
    assert [s.path.name for s in find_sources(scan_folder, "T1")] == ["sub-3_T1w.nii.gz"]
    for every in EVERY:
        assert len(find_sources(scan_folder, every)) == 3
    table = tmp_path / "t.tsv"
    table.write_text("file\tcontrast\tsubject\nsub-3_T1w.nii.gz\tT2\tsomebody\n")
    found = find_sources(scan_folder, "T2", table)
    assert [s.subject for s in found] == ["sub-1", "sub-2", "somebody"]


def test_what_poan_made_is_no_truth_and_is_left_out(scan_folder):
    told = []
    shutil.copy(scan_folder / "sub-1_T2w.nii.gz", scan_folder / "sub-1_desc-sr_T2w.nii.gz")
    for name, note in (("own_T2.nii", "TE=80; poan 0.2"), ("other_T2.nii.gz", "a poan tree")):
        image = nibabel.load(scan_folder / "sub-1_T2w.nii.gz")
        image.header["descrip"] = note
        nibabel.save(image, scan_folder / name)
    (scan_folder / "damaged_T2.nii.gz").write_bytes(b"\x1f\x8bnot gzip")
    found = find_sources(scan_folder, "T2", say=told.append)
    names = ["damaged_T2.nii.gz", "other_T2.nii.gz", "sub-1_T2w.nii.gz", "sub-2_T2w.nii.gz"]
    assert [source.path.name for source in found] == names
    assert told == [f"{scan_folder}: 2 results of poan left out"]
    (scan_folder / "sub-3_T1w.nii.gz").rename(scan_folder / "sub-3_T1w_desc-sr.nii.gz")
    with pytest.raises(PoanError, match="no NIfTI volume of contrast T1"):
        find_sources(scan_folder, "T1", say=told.append)
    assert told[1:] == [f"{scan_folder}: 1 result of poan left out"]


def test_a_folder_without_a_contrast_in_its_names_is_told_which_words_count(tmp_path):
    (tmp_path / "MR_scan.nii.gz").touch()
    for every in EVERY:
        with pytest.raises(PoanError) as raised:
            find_sources(tmp_path, every)
        assert str(raised.value) == (
            f"{tmp_path}: no NIfTI volume whose name says T1, T2, PD or FLAIR; it must, as "
            "scan_T2.nii.gz does, or --table must list it"
        )


def test_a_folder_or_table_that_does_not_serve_is_one_line(scan_folder, tmp_path):
    with pytest.raises(PoanError, match=r"no NIfTI volume of contrast FLAIR.*scan_FLAIR.nii.gz"):
        find_sources(scan_folder, "FLAIR")
    with pytest.raises(PoanError, match=r"sub-1_T2w.nii.gz: is a file; name its folder"):
        find_sources(scan_folder / "sub-1_T2w.nii.gz", "T2")
    with pytest.raises(PoanError, match="no such folder"):
        find_sources(tmp_path / "absent", "T2")
    table = tmp_path / "t.tsv"
    table.write_text("file\tcontrast\n a\tT2\n")
    with pytest.raises(PoanError, match="needs tab-separated columns"):
        find_sources(scan_folder, "T2", table)


def test_slices_are_taken_across_the_thick_axis_and_a_pair_is_aligned(scan_folder):
    (source,) = find_sources(scan_folder, "T1")
    hr, _ = hr_slices(source)
    assert hr.shape == (5, 40, 44)
    pair = cached_pair(source, 4, "bicubic", None, data.default_cache())
    assert pair.lr.shape[1:] == (10, 11)
    assert intensity_unit(pair.lr) == pytest.approx(1.0, rel=1e-6)
    assert pair.tissue == pytest.approx(np.median(pair.lr[pair.lr > 0.05]), rel=1e-6)
    block_means = pair.hr.reshape(-1, 10, 4, 11, 4).mean((2, 4))
    assert np.corrcoef(block_means.ravel(), pair.lr.ravel())[0, 1] > 0.95


def test_what_a_killed_training_left_in_the_cache_goes_and_what_another_writes_stays(scan_folder):
    cache = data.default_cache()
    (cache / ".abandoned.poan-pair").mkdir(parents=True)
    with working_folder(cache, ".", ".poan-pair") as other:
        load = load_pairs(find_sources(scan_folder, "T2")[:1], 2, "bicubic", cache=cache)
        assert len(list(load)) == 1
        assert other.is_dir()
        assert not (cache / ".abandoned.poan-pair").exists()
    left = [path.name for path in cache.iterdir()]
    assert len(left) == 1
    assert left[0].startswith("sub-")


def test_the_cache_is_used_again_and_made_anew_when_the_file_changes(scan_folder, monkeypatch):
    (source,) = find_sources(scan_folder, "T1")
    calls = []
    original = data.make_pair
    monkeypatch.setattr(data, "make_pair", lambda *a: calls.append(a) or original(*a))
    cache = data.default_cache()
    first = cached_pair(source, 2, "bicubic", None, cache)
    assert np.array_equal(cached_pair(source, 2, "bicubic", None, cache).hr, first.hr)
    assert len(calls) == 1
    image = nibabel.load(source.path)
    changed = np.asarray(image.dataobj) // 2
    nibabel.save(nibabel.Nifti1Image(changed, image.affine), source.path)
    cached_pair(source, 2, "bicubic", None, cache)
    cached_pair(source, 2, "kspace", None, cache)
    assert len(calls) == 3


def test_ixi_is_cropped_to_its_middle(tmp_path):
    path = tmp_path / "IXI002-Guys-0828-T2.nii.gz"
    voxels = np.zeros((256, 250, 130), np.int16)
    voxels[8:248, 5:245, 17:113] = np.random.default_rng(0).integers(1, 99, (240, 240, 96))
    affine = np.diag([0.94, 0.94, 1.25, 1.0])
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    hr, cutoff = hr_slices(Source(path=path, contrast="T2", subject="IXI002"))
    assert (hr.shape, cutoff) == ((96, 240, 240), (1.0, 1.0))
    assert (hr > 0).all()


def test_background_slices_are_left_out(tmp_path):
    voxels = np.zeros((32, 32, 6), np.float32)
    voxels[8:24, 8:24, 2:5] = 1
    path = tmp_path / "a_T2.nii"
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1, 1, 5, 1.0])), path)
    (pair,) = load_pairs(find_sources(tmp_path, "T2"), 2, "bicubic")
    assert len(pair.hr) == 3


def pairs_of(scan_folder, scale=2, method="bicubic"):
    return list(load_pairs(find_sources(scan_folder, "T2"), scale, method))


def test_a_batch_is_a_function_of_seed_and_step_on_any_number_of_processes(scan_folder):
    pairs = pairs_of(scan_folder)
    make = lambda **k: PatchSampler(pairs, 2, 8, 4, 5, **k)  # noqa: E731
    lr, hr = make().batch(3)
    assert (lr.shape, hr.shape) == ((4, 1, 8, 8), (4, 1, 16, 16))
    assert np.array_equal(make().batch(3)[0], lr)
    assert not np.array_equal(make().batch(4)[0], lr)
    for rank in range(3):
        assert np.array_equal(make(rank=rank, world=3).batch(3)[0], lr[rank::3])


def test_subjects_that_are_set_aside_are_in_no_part(tmp_path):
    files = sources(tmp_path, [f"T2_patient{i // 2}_study{i % 2}.nii" for i in range(6)])
    assert {s.subject for s in set_aside(files, ["patient1"])} == {"patient0", "patient2"}
    with pytest.raises(PoanError, match="no volume of patient9; the subjects are patient0, pat"):
        set_aside(files, ["patient0", "patient9"])


def test_batches_made_ahead_are_those_of_the_sampler_in_any_order(scan_folder):
    sampler = PatchSampler(pairs_of(scan_folder), 2, 8, 4, 5)
    with Ahead(sampler) as ahead:
        for step in (0, 1, 2, 7, 3):
            for made, asked in zip(ahead.batch(step), sampler.batch(step), strict=True):
                assert np.array_equal(made, asked)


def test_the_next_batch_is_made_beside_the_step():
    begun, stepped, beside = threading.Event(), threading.Event(), []

    class Watched:
        def batch(self, step):
            if step == 1:
                begun.set()
                beside.append(stepped.wait(10))
            return step, step

    with Ahead(Watched()) as ahead:
        assert ahead.batch(0) == (0, 0)
        assert begun.wait(10)  # nobody asked for it yet
        stepped.set()
        assert ahead.batch(1) == (1, 1)
    assert beside == [True]


def test_patches_show_tissue_and_not_noisy_air(scan_folder):
    """Air of a tenth of the tissue is no tissue: a column of tissue is found all the same."""
    lr = np.full((2, 40, 80), 0.06, np.float32)
    lr[:, :, 60:] = 0.6
    hr = np.kron(lr, np.ones((2, 2), np.float32))
    source = pairs_of(scan_folder)[0].source
    pair = Pair(source=source, hr=hr, lr=lr, cutoff=(1, 1), tissue=0.6)
    patches = np.concatenate([PatchSampler([pair], 2, 8, 50, 0).batch(i)[0] for i in range(4)])
    shown = (patches > 0.3).mean(axis=(1, 2, 3)) >= 0.3
    # a place in four has tissue, and eight tries miss it once in ten
    assert shown.mean() > 0.8


@pytest.mark.parametrize("scale", [2, 4])
def test_lr_and_hr_of_a_patch_show_the_same_place_however_they_are_turned(scan_folder, scale):
    lr, hr = PatchSampler(pairs_of(scan_folder, scale), scale, 6, 64, 0).batch(0)
    means = hr[:, 0].reshape(64, 6, scale, 6, scale).mean((2, 4))
    inner = (slice(None), slice(1, -1), slice(1, -1))
    assert np.corrcoef(means[inner].ravel(), lr[:, 0][inner].ravel())[0, 1] > 0.97


def test_on_the_k_space_grid_patches_are_never_flipped(scan_folder):
    ramp = np.add.outer(np.arange(16.0), 100 * np.arange(16.0)).astype(np.float32)
    pair = pairs_of(scan_folder)[0]
    pair = data.Pair(
        source=pair.source, hr=np.kron(ramp, np.ones((2, 2)))[None], lr=ramp[None], cutoff=(1, 1)
    )
    for grid, rising in (("kspace", True), ("centre", False)):
        lr, _ = PatchSampler([pair], 2, 8, 40, 0, grid=grid).batch(0)
        assert all(np.diff(lr, axis=axis).min() > 0 for axis in (-1, -2)) is rising


def test_a_patch_larger_than_the_slice_is_clamped(scan_folder):
    assert PatchSampler(pairs_of(scan_folder, 4), 4, 64, 1, 0).patch == 10


def test_validation_tiles_are_the_same_every_time_and_of_every_volume(scan_folder):
    pairs = pairs_of(scan_folder)
    first, again = fixed_tiles(pairs, 2, 8, 6), fixed_tiles(pairs, 2, 8, 6)
    assert np.array_equal(first[0], again[0])
    assert first[1].shape == (6, 1, 16, 16)


def test_nothing_to_train_on_is_one_line():
    with pytest.raises(PoanError, match="no slice with anything but background"):
        PatchSampler([], 2, 8, 4, 0)


def test_each_axis_is_brought_to_its_own_true_resolution():
    """0.6 of the rows and 0.75 of the columns were measured."""
    slices = np.round(10 * acquire(anatomy((6, 96, 120)), (160, 160), sigma=1.0))
    hr, cutoffs = to_true_resolution(slices)
    # The foot is read to a bin or two of 80.
    assert cutoffs == (pytest.approx(0.6, abs=0.02), pytest.approx(0.75, abs=0.02))
    assert hr.shape == (6, round(160 * cutoffs[0]), round(160 * cutoffs[1]))
    assert hr.min() >= 0
    assert np.array_equal(hr, np.maximum(to_native(slices, hr.shape[1:]), 0))


def test_a_volume_with_a_full_spectrum_is_left_as_it_is():
    slices = np.random.default_rng(0).random((4, 64, 64)).astype(np.float32)
    same, cutoffs = to_true_resolution(slices)
    assert cutoffs == (1.0, 1.0)
    assert np.array_equal(same, slices)


def test_scans_that_zero_fill_are_undone_before_they_count_as_hr(shared_data):
    path = shared_data / "val/T2_openms_patient04_study1.nii.gz"
    hr, cutoff = hr_slices(Source(path=path, contrast="T2", subject="patient04"))
    assert cutoff == (pytest.approx(0.74, abs=0.02), 1.0)  # as seen in a plot of its spectrum
    assert hr.shape == (44, round(348 * cutoff[0]), 384)
