"""Where zero-filling begins: made scans of known matrix, one-sided bands, filters, real scans."""

import csv

import nibabel as nib
import numpy as np
import pytest

from poan_runtime.geometry import slice_axis
from poan_runtime.signal import native
from poan_runtime.signal.kspace import to_native
from poan_runtime.signal.native import find_foot, find_native, profile, sampled
from tests.runtime.signal.phantom import Images, acquire, anatomy

CLOSE = 0.02
"""The foot is read to a bin or two of some 60 to 110."""

MATRICES = [
    ((96, 120), (160, 200)),  # 0.6 and 0.6
    ((96, 120), (137, 171)),  # 0.70, odd
    ((97, 121), (121, 151)),  # 0.80, odd to odd
    ((96, 120), (192, 240)),  # 0.5
    ((96, 120), (160, 120)),  # rows alone
    ((96, 121), (96, 173)),  # columns alone, 0.70
]
SIGMAS = [0.0, 3.3]
"""Without noise and at an SNR of 30."""


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize(("measured", "matrix"), MATRICES)
def test_each_axis_has_its_own_cutoff(
    measured: tuple[int, int], matrix: tuple[int, int], sigma: float
) -> None:
    scan = np.round(10 * acquire(anatomy((6, *measured)), matrix, sigma=sigma))
    found = find_native(scan)
    for m, n, cutoff in zip(measured, matrix, found.cutoffs, strict=True):
        if m == n:
            assert cutoff is None
        else:
            assert cutoff == pytest.approx(m / n, abs=CLOSE)


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("shape", [(6, 96, 120), (6, 121, 97), (3, 64, 64)])
def test_a_full_spectrum_is_no_alarm(shape: tuple[int, int, int], sigma: float) -> None:
    found = find_native(acquire(anatomy(shape), (shape[1], shape[2]), sigma=sigma))
    assert found.cutoffs == (None, None)
    assert found.native == shape[1:]
    assert not found.is_zero_filled


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("share", [5 / 8, 6 / 8, 7 / 8])
def test_a_one_sided_band_ends_where_its_longer_side_does(share: float, sigma: float) -> None:
    images = anatomy((6, 96, 120))
    keep = (np.fft.fftshift(np.fft.fftfreq(120)) * 2 > 1 - 2 * share).astype(float)
    found = find_native(acquire(images, (96, 120), sigma=sigma, keep=keep))
    assert found.cutoffs == (None, None)
    said = "full, one-sided in part" if share > 5 / 8 else "full"  # 0.25 is below LOWEST
    assert found.reasons == ("full", said)
    filled = find_native(acquire(images, (96, 160), sigma=sigma, keep=keep))
    assert filled.cutoffs == (None, pytest.approx(0.75, abs=CLOSE))


def test_a_filter_on_the_measured_lines_hides_no_edge() -> None:
    """A taper from 0.7 of the band down to 0.15: the foot, not the middle of the fall, counts."""
    f = np.abs(np.fft.fftshift(np.fft.fftfreq(150))) * 2
    taper = np.where(f < 0.7, 1, 0.15 + 0.85 * np.cos(np.pi / 2 * (f - 0.7) / 0.3) ** 2)
    scan = acquire(anatomy((6, 120, 150)), (120, 210), sigma=1.0, keep=taper)
    assert find_native(scan).cutoffs == (None, pytest.approx(150 / 210, abs=0.03))


def test_a_filter_that_falls_to_nyquist_is_no_zero_filling() -> None:
    f = np.abs(np.fft.fftshift(np.fft.fftfreq(200))) * 2
    hamming = 0.54 + 0.46 * np.cos(np.pi * f)
    scan = acquire(anatomy((6, 120, 200)), (120, 200), sigma=1.0, keep=hamming)
    assert find_native(scan).cutoffs == (None, None)


def test_the_native_matrix_has_a_full_spectrum_again() -> None:
    scan = acquire(anatomy((6, 96, 120)), (160, 200), sigma=2.0)
    found = find_native(scan)
    again = find_native(to_native(scan, found.native))
    assert found.is_zero_filled
    assert again.cutoffs == (None, None)


def test_an_iterator_of_slices_is_as_good_as_an_array() -> None:
    scan = acquire(anatomy((5, 80, 90)), (120, 90))
    assert find_native(iter(scan[sampled(5)])) == find_native(scan)


def test_values_that_are_not_finite_count_as_zero() -> None:
    scan = acquire(anatomy((5, 80, 90)), (120, 90))
    holed = scan.copy()
    holed[:, :2, :3], holed[:, -1, -1] = np.nan, np.inf
    assert find_native(holed) == find_native(scan)


def test_where_nothing_can_be_told_it_says_so() -> None:
    assert find_native(np.zeros((2, 64, 64))).reasons == ("no signal", "no signal")
    few = find_native(np.random.default_rng(0).random((3, 32, 40)))
    assert few.cutoffs == (None, None)
    assert few.reasons[0] == "fewer than 48 lines, too few to tell"
    with pytest.raises(ValueError, match="at least one slice"):
        find_native(iter([]))


def test_of_two_cliffs_the_outer_one_counts() -> None:
    """What lies between them was measured, however little it is."""
    f = np.linspace(0, 1, 101)
    line = 6 - f - 2.5 * (f > 0.4) - 1.0 * (f > 0.7)
    assert find_foot(line, 200)[0] == pytest.approx(0.7, abs=CLOSE)
    assert find_foot(line + 1.0 * (f > 0.7), 200)[0] == pytest.approx(0.4, abs=CLOSE)


def stripped(scan: Images) -> Images:
    """Slices (n, h, w) with zeros about an ellipse inside the head, and some in it."""
    _, h, w = scan.shape
    y, x = np.linspace(-1, 1, h)[:, None], np.linspace(-1, 1, w)
    brain = ((y / 0.6) ** 2 + (x / 0.6) ** 2 < 1) & (np.random.default_rng(4).random((h, w)) > 1e-3)
    return np.where(brain, scan, 0.0)


def test_a_mask_that_cuts_through_tissue_does_not_bury_the_foot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A scan with a filter that leaves 0.3 at the end of the measured lines."""
    f = np.abs(np.fft.fftshift(np.fft.fftfreq(120))) * 2
    taper = np.where(f < 0.6, 1, 0.3 + 0.7 * np.cos(np.pi / 2 * (f - 0.6) / 0.4) ** 2)
    soft = acquire(anatomy((6, 144, 120)), (144, 160), sigma=1.0, keep=taper)
    assert find_native(stripped(soft)).cutoffs == (None, pytest.approx(0.75, abs=CLOSE))
    full = acquire(anatomy((6, 144, 160)), (144, 160), sigma=1.0)
    assert find_native(stripped(full)).cutoffs == (None, None)
    monkeypatch.setattr(native, "without_mask_edge", lambda image: image)
    assert find_native(stripped(soft)).cutoffs == (None, None)


def test_a_slice_without_such_a_mask_is_looked_at_as_it_is() -> None:
    whole = anatomy((1, 96, 120))[0].astype(np.float32)
    noisy = whole + np.float32(0.5)
    dim = np.where(whole > 0, whole, np.random.default_rng(0).integers(0, 3, whole.shape))
    y, x = np.linspace(-1, 1, 96)[:, None], np.linspace(-1, 1, 120)
    fading = whole * np.maximum(0, 1 - (y / 0.75) ** 2 - (x / 0.7) ** 2).astype(np.float32)
    holed = noisy.copy()
    holed[40:50, 50:60] = 0
    for image in (noisy, dim.astype(np.float32), np.zeros_like(whole), fading, holed):
        assert native.without_mask_edge(image) is image


def test_inside_a_mask_a_slice_fades_out_to_its_median() -> None:
    flat = stripped(np.full((1, 144, 160), 70.0))[0].astype(np.float32)
    faded = native.without_mask_edge(flat)
    assert faded is not flat
    assert np.median(np.abs(faded[60:84, 66:94])) == 0


def test_a_dip_of_a_spectrum_that_goes_on_is_no_end_of_it() -> None:
    """Smooth shapes have such dips: steep before, level behind, and power to the end."""
    f = np.linspace(0, 1, 101)
    dip = 0.9 * np.clip((f - 0.5) / 0.08, 0, 1) * (f < 0.75)
    assert find_foot(6 - f - dip, 200) == (None, "full")
    assert find_foot(6 - f - 1.3 * np.clip((f - 0.5) / 0.08, 0, 1), 200)[0] is not None


def test_the_receivers_filter_at_nyquist_and_one_loud_line_move_no_foot() -> None:
    f = np.linspace(0, 1, 101)
    line = 6 - f - 2.5 * (f > 0.85)
    line[-2:] -= 4
    assert find_foot(line, 200)[0] == pytest.approx(0.85, abs=0.005)
    soft = 6 - f - 3 * np.clip((f - 0.5) / 0.15, 0, 1)
    loud = soft + 1.0 * (np.arange(101) == 72)
    assert find_foot(loud, 200)[0] == pytest.approx(find_foot(soft, 200)[0], abs=CLOSE)


def test_the_two_halves_of_the_rows_spectrum_both_count() -> None:
    power = np.ones((10, 6))
    power[7] = 100  # row frequency -3
    np.testing.assert_allclose(profile(power, 0, (10, 10))[2:5], [0, 1, 0], atol=1e-9)


KNOWN = {
    "FLAIR_openms_patient04_study1": (0.69, None),
    "FLAIR_openms_patient20_study2": (0.69, None),
    "T1_ds002748_sub-71": (None, 0.78),
    "T1_openms_patient04_study1": (0.80, None),
    "T1_openms_patient20_study2": (0.79, None),
    "T2_SIAT_subj7": (None, None),
    "T2_openms_patient04_study1": (0.74, None),
}
"""The foot, read by eye in a plot of each spectrum, of the skull-stripped volume inside the brain:
its mask's edge buries the foot, and MANIFEST.tsv has it as full. The list there gives the middle of
the fall of the scanner's filter, 0.02 to 0.03 lower."""


@pytest.mark.parametrize("name", KNOWN)
def test_the_cutoffs_of_real_scans_are_those_seen_in_their_spectra(name, shared_data) -> None:
    scan = nib.load(shared_data / "val" / f"{name}.nii.gz")
    axis = slice_axis(scan.affine, scan.shape)
    volume = np.moveaxis(np.asanyarray(scan.dataobj), axis, 0)
    for cutoff, seen in zip(find_native(volume).cutoffs, KNOWN[name], strict=True):
        assert cutoff == (None if seen is None else pytest.approx(seen, abs=0.02))


@pytest.mark.slow
def test_no_volume_listed_as_full_is_called_zero_filled_but_seven(shared_data) -> None:
    """Two breast scans end at 192 of 256 lines, one FLAIR was resampled from fewer, and inside the
    brain the four skull-stripped volumes of ds002748 end at some 224 of 288."""
    with (shared_data / "MANIFEST.tsv").open(newline="") as stream:
        rows = [r for r in csv.DictReader(stream, delimiter="\t") if ".nii" in r["file"]]
    column = next(name for name in rows[0] if name.startswith("zero_fill_cutoff"))
    alarms = set()
    for row in (r for r in rows if r[column] == "none/none"):
        scan = nib.load(shared_data / row["file"])
        volume = np.moveaxis(np.asanyarray(scan.dataobj), slice_axis(scan.affine, scan.shape), 0)
        if find_native(volume).is_zero_filled:
            alarms.add(row["file"].split("/")[-1].split(".")[0])
    assert alarms <= {
        "T1_sub-ucsfbr06_breast",
        "T1_sub-ucsfbr08_breast",
        "FLAIR_sub-pysynthsr_1mm",
        "T1_ds002748_sub-37",
        "T1_ds002748_sub-43",
        "T1_ds002748_sub-45",
        "T1_ds002748_sub-71",
    }
