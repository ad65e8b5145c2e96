"""LR as a scanner makes it, against DFT sums written out and against what was asked for."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from poan_runtime.errors import PoanError
from poan_train.acquire import (
    KINDS,
    NOTHING,
    Acquisition,
    LRModel,
    Scan,
    acquire,
    bicubic_patch,
    lr_model,
    lr_of,
    response,
    tissue_of,
)
from poan_train.data import Pair, PatchSampler
from poan_train.degrade import degrade, sinc
from poan_train.subjects import Source


def noise(shape, seed=0):
    return np.random.default_rng(seed).random(shape) + 1.0


def generator():
    return np.random.default_rng(3)


def frequencies(n):
    """Whole frequencies -n/2 .. n/2 with both ends of an even n, each of half weight there."""
    f = np.arange(-(n // 2), n // 2 + 1)
    return f, np.where((n % 2 == 0) & (abs(f) == n / 2), 0.5, 1.0)


def along(n_hr, n, positions, weights):
    """The DFT sum along one axis: HR to values at ``positions`` from its n lowest frequencies."""
    f, share = frequencies(n)
    analysis = np.exp(-2j * np.pi * f[:, None] * np.arange(n_hr) / n_hr) / n_hr
    synthesis = np.exp(2j * np.pi * positions[:, None] * f / n_hr)
    return synthesis @ ((share * weights(f))[:, None] * analysis)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("shape", [(8, 10), (9, 7)])
def test_truncated_lr_is_the_dft_sum_at_the_centre_grids_positions(scale, shape):
    hr = noise(tuple(scale * n for n in shape))
    rows, columns = (
        along(scale * n, n, scale * np.arange(n) + (scale - 1) / 2, np.ones_like) for n in shape
    )
    expected = rows @ hr @ columns.T
    # the halves of the Nyquist line on both sides make the sum of a real image real
    assert np.abs(expected.imag).max() < 1e-12
    lr = acquire(degrade(hr, scale, "truncated"), Scan(), 1.0, generator())
    assert np.abs(lr - np.abs(expected)).max() < 1e-6  # float32 of values near 1.5


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("axis", [0, 1])
def test_partial_fourier_is_the_dft_sum_over_the_lines_of_either_side(axis, side):
    hr, shape = noise((18, 22)), (9, 11)  # odd: no Nyquist line, whose side is a convention
    kept = [np.ones_like, np.ones_like]
    limit = (2 * 0.75 - 1) * shape[axis] / 2
    kept[axis] = lambda f: -side * f >= -limit
    rows, columns = (
        along(2 * n, n, 2 * np.arange(n) + 0.5, keep) for n, keep in zip(shape, kept, strict=True)
    )
    expected = np.abs(rows @ hr @ columns.T)
    scan = Scan(partial=(axis, 0.75))
    lr = acquire(degrade(hr, 2, "truncated"), scan, 1.0, generator())
    assert np.abs(lr - expected).max() < 1e-6  # float32 of values near 1.5
    assert np.abs(lr - degrade(hr, 2, "truncated")).max() > 0.01


@pytest.mark.parametrize("axis", [0, 1])
def test_partial_fourier_of_fewer_lines_lacks_its_share_of_those(axis):
    scan = Scan(partial=(axis, 0.75), band=(0.5, 0.5))
    lines = (response(scan, (48, 48)) > 0).any(axis=1 - axis)
    f = np.rint(np.fft.fftfreq(48) * 48)[lines]
    either = min(-f.min(), f.max()), max(-f.min(), f.max())
    assert either == (6, 12)  # half of one side of 12 lines
    assert len(f) == 6 + 1 + 12


@pytest.mark.parametrize("band", [(0.6, 1.0), (1.0, 0.7), (0.5, 0.5)])
def test_fewer_lines_leave_the_rest_of_the_spectrum_empty(band):
    lr = acquire(degrade(noise((80, 120)), 2, "truncated"), Scan(band=band), 1.0, generator())
    power = np.abs(np.fft.fft2(lr))
    for axis, (share, n) in enumerate(zip(band, lr.shape, strict=True)):
        outside = np.abs(np.rint(np.fft.fftfreq(n) * n)) > share * n / 2 + 1e-9
        empty = np.compress(outside, power, axis=axis)
        assert empty.size == 0 or empty.max() < 1e-6 * power.max()
        assert outside.sum() == (n - 1 - 2 * round(share * n / 2) if share < 1 else 0)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("shape", [(8, 10), (9, 7)])
def test_sinc_is_the_dft_sum_of_lr_at_hrs_positions(scale, shape):
    lr = noise(shape)
    rows, columns = (
        along(n, n, (np.arange(scale * n) - (scale - 1) / 2) / scale, np.ones_like) for n in shape
    )
    expected = rows @ lr @ columns.T
    assert np.abs(sinc(lr, scale) - expected).max() < 1e-6  # float32 of values near 2


def positive_waves(shape, points, highest=3):
    """A band-limited phantom above zero, so that its magnitude is itself, at given positions."""
    rng = np.random.default_rng(7)
    y, x = points
    image = np.full(np.broadcast(y, x).shape, 40.0)
    for _ in range(12):
        fy, fx = rng.integers(-highest, highest + 1, 2)
        phase = rng.uniform(0, 6)
        image += np.cos(2 * np.pi * (fy * y / shape[0] + fx * x / shape[1]) + phase)
    return image


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_noise_free_lr_of_a_band_limited_phantom_is_the_phantom_at_lrs_positions(scale):
    shape = (8 * scale, 10 * scale)
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    hr, first = positive_waves(shape, (y, x)), (scale - 1) / 2
    expected = positive_waves(shape, (y[::scale, ::scale] + first, x[::scale, ::scale] + first))
    lr = acquire(degrade(hr, scale, "truncated"), Scan(), 1.0, generator())
    assert np.abs(lr - expected).max() < 1e-5  # float32 of 50
    assert np.abs(sinc(lr, scale) - hr).max() < 2e-5  # and back, where sinc is exact


@pytest.mark.parametrize("scan", [Scan(), KINDS["filtered"], Scan(filter="hamming", elliptic=True)])
@pytest.mark.parametrize("snr", [15.0, 60.0])
def test_the_noise_has_the_snr_that_was_asked_for_behind_any_filter(scan, snr):
    tissue = 4.0
    flat = np.full((200, 180), tissue, np.float32)
    lr = acquire(flat, replace(scan, snr=snr), tissue, generator())
    # 36,000 voxels give the deviation to 0.4 %, a filter's correlation fewer; three sigma
    assert tissue / lr.std() == pytest.approx(snr, rel=0.03)


def test_the_noise_of_air_is_rayleigh():
    lr = acquire(np.zeros((200, 180), np.float32), Scan(snr=10.0), 5.0, generator())
    sigma = 5.0 / 10.0
    # mean and deviation of a Rayleigh variable; 36,000 voxels give each to 0.4 %
    assert lr.mean() == pytest.approx(sigma * np.sqrt(np.pi / 2), rel=0.02)
    assert lr.std() == pytest.approx(sigma * np.sqrt(2 - np.pi / 2), rel=0.02)


def test_the_noise_wraps_around_and_is_the_same_at_every_edge():
    """Its correlation behind a filter is that of the whole slice, also across its border."""
    stack = np.full((400, 32, 32), 5.0, np.float32)
    scan = Scan(filter="tukey", shape=(0.3, 0.0), snr=50.0)
    lr = acquire(stack, scan, 5.0, generator()) - 5.0
    inside = (lr[:, :, 15] * lr[:, :, 16]).mean() / lr.var()
    across = (lr[:, :, 0] * lr[:, :, -1]).mean() / lr.var()
    assert inside > 0.3
    # each is a mean over 12,800 correlated products: 2 % of the variance at one sigma
    assert across == pytest.approx(inside, abs=0.06)


@pytest.mark.parametrize(
    ("scan", "at"),
    [
        (Scan(filter="hamming"), lambda u: 0.54 + 0.46 * np.cos(np.pi * u)),
        (
            Scan(filter="tukey", shape=(0.4, 0.2)),
            lambda u: 1 - 0.8 * np.sin(np.pi / 2 * max(0, (u - 0.4) / 0.6)) ** 2,
        ),
        (Scan(filter="fermi", shape=(0.8, 0.1)), lambda u: 0.5 - 0.5 * np.tanh((u - 0.8) / 0.2)),
    ],
)
@pytest.mark.parametrize("elliptic", [False, True])
def test_a_wave_comes_out_times_the_filters_response(scan, at, elliptic):
    n, fy, fx = 40, 6, 9
    y, x = np.mgrid[:n, :n]
    wave = 10 + np.cos(2 * np.pi * (fy * y + fx * x) / n)  # above zero: the magnitude is itself
    lr = acquire(wave, replace(scan, elliptic=elliptic), 1.0, generator())
    u, v = 2 * fy / n, 2 * fx / n
    expected = at(np.hypot(u, v)) if elliptic else at(u) * at(v)
    seen = 2 * np.abs(np.fft.fft2(lr)[fy, fx]) / n**2
    assert seen == pytest.approx(expected, rel=1e-5)  # float32 of 11


@pytest.mark.parametrize(
    ("scan", "edge"),
    [(Scan(filter="hamming"), 0.08), (Scan(filter="tukey", shape=(0.4, 0.2)), 0.2)],
)
def test_a_filter_by_the_radius_does_not_rise_again_in_the_corners(scan, edge):
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(40) * 2, np.fft.fftfreq(40) * 2))
    kept = response(replace(scan, elliptic=True), (40, 40))
    assert kept[radius > 1] == pytest.approx(edge, rel=1e-6)  # float32


def test_bicubic_lr_cannot_be_made_of_what_is_truncated():
    with pytest.raises(ValueError, match="bicubic LR is made from HR"):
        acquire(noise((8, 8)), Scan(bicubic=True), 1.0, generator())


def test_tissue_is_the_median_of_what_is_above_5_percent_of_the_unit():
    assert tissue_of(np.array([0.0, 0.049, 0.051, 0.4, 1.2])) == 0.4
    assert tissue_of(np.zeros((4, 4))) == 1.0


def test_skipped_corners_are_those_outside_of_the_ellipse():
    kept = response(Scan(corners=True, band=(0.8, 1.0)), (64, 48))
    u, v = np.fft.fftfreq(64) * 2 / 0.8, np.fft.fftfreq(48) * 2
    assert np.array_equal(kept > 0, u[:, None] ** 2 + v[None, :] ** 2 <= 1)


def test_rounding_leaves_whole_numbers_of_the_levels():
    lr = acquire(noise((20, 20)), Scan(levels=255.0), 1.0, generator())
    assert np.abs(lr * 255 - np.rint(lr * 255)).max() < 1e-4  # float32 of 510
    assert np.abs(lr - noise((20, 20))).max() == pytest.approx(0.5 / 255, rel=0.02)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("corner", [(0, 0), (5, 3), (12, 14)])
def test_a_bicubic_patch_is_cut_from_the_whole_slices_lr(scale, corner):
    hr = noise((20 * scale, 22 * scale)).astype(np.float32)
    (y, x), p = corner, 8
    whole = degrade(hr, scale, "bicubic")[y : y + p, x : x + p]
    assert np.abs(bicubic_patch(hr, y, x, p, scale) - whole).max() < 1e-6  # order of float32 sums


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    hr = rng.random((3, 64, 72)).astype(np.float32) + 0.5
    lr = degrade(hr, 2, "truncated")
    source = Source(path=__file__, contrast="T2", subject="one")
    return Pair(source=source, hr=hr, lr=lr, cutoff=(1.0, 1.0), tissue=tissue_of(lr))


def batch(pair, step, **changes):
    settings = {"seed": 5, "acquisition": Acquisition(), **changes}
    return PatchSampler([pair], 2, 12, 8, **settings).batch(step)


def test_a_patchs_scan_is_a_function_of_seed_step_and_index(pair):
    lr, hr = batch(pair, 7)
    again, same = batch(pair, 7)
    assert np.array_equal(lr, again)
    assert np.array_equal(hr, same)
    assert not np.array_equal(lr, batch(pair, 8)[0])
    assert not np.array_equal(lr, batch(pair, 7, seed=6)[0])
    assert np.array_equal(lr[1::2], batch(pair, 7, rank=1, world=2)[0])
    fewer = PatchSampler([pair], 2, 12, 3, 5, acquisition=Acquisition()).batch(7)[0]
    assert np.array_equal(fewer, lr[:3])


def test_each_patch_of_a_batch_has_noise_of_its_own(pair):
    noisy = Acquisition(**{**asdict(NOTHING), "noise": 1.0, "snr": (12.0, 100.0)})
    clean, lr = batch(pair, 0, acquisition=NOTHING)[0], batch(pair, 0, acquisition=noisy)[0]
    assert clean.shape == lr.shape == (8, 1, 12, 12)
    assert all(len(np.unique(p)) == p.size for p in lr)
    assert len(np.unique(lr)) == lr.size  # nor do two patches share a voxel


def test_a_patch_of_the_mix_may_be_bicubic(pair):
    always = replace(NOTHING, bicubic=1.0)
    lr = PatchSampler([pair], 2, 12, 8, 5, grid="kspace", acquisition=always).batch(0)[0]
    slices = degrade(pair.hr, 2, "bicubic")
    cut = np.lib.stride_tricks.sliding_window_view(slices, (12, 12), axis=(1, 2))
    for patch in lr[:, 0]:
        off = [np.abs(cut - turned).max(axis=(-1, -2)).min() for turned in (patch, patch.T)]
        assert min(off) < 1e-6  # order of float32 sums


def test_the_snr_of_a_patch_refers_to_its_volumes_tissue(pair):
    config = replace(NOTHING, noise=1.0, snr=(20.0, 20.0))
    flat = replace(pair, lr=np.full_like(pair.lr, 0.5), hr=np.full_like(pair.hr, 0.5), tissue=0.5)
    lr = PatchSampler([flat], 2, 24, 16, 5, acquisition=config).batch(0)[0]
    # 9,216 voxels: the deviation to 0.7 %, three sigma, and patches of one slice are alike
    assert 0.5 / lr.std() == pytest.approx(20, rel=0.05)


def test_a_patch_is_cut_from_the_whole_slices_acquisition(pair, monkeypatch):
    """No error at the patch's edge: it is found bit for bit in a slice that was acquired."""
    monkeypatch.setattr("poan_train.acquire.FILTERS", ("hamming",))
    always = Acquisition(**{**asdict(NOTHING), "filter": 1.0})
    lr = PatchSampler([pair], 2, 12, 8, 5, grid="kspace", acquisition=always).batch(0)[0]
    slices = acquire(pair.lr, Scan(filter="hamming"), 1.0, generator())
    cut = np.lib.stride_tricks.sliding_window_view(slices, (12, 12), axis=(1, 2))
    for patch in lr[:, 0]:
        assert any((cut == turned).all(axis=(-1, -2)).any() for turned in (patch, patch.T))


def test_a_model_is_named_or_read_from_toml_and_survives_a_checkpoints_facts(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("bicubic = 0\nsnr = [20, 40]\npartial_shares = [0.625]\n")
    model = lr_model(str(path))
    assert model.acquisition == Acquisition(bicubic=0, snr=(20, 40), partial_shares=(0.625,))
    for name in ("scanner", "truncated", "bicubic", "kspace", str(path)):
        model = lr_model(name)
        assert LRModel.of_facts(model.facts(2)) == model
    assert LRModel.of_facts({"method": "kspace", "scale": 2}) == LRModel(method="kspace")
    assert LRModel.of_facts({"scale": 2}) == LRModel(method="bicubic")  # as the first were
    assert lr_model("scanner") == LRModel(method="scanner", acquisition=Acquisition())
    assert lr_model("truncated") == LRModel(method="truncated", acquisition=NOTHING)
    for name in ("bicubic", "kspace"):
        assert lr_model(name) == LRModel(method=name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("snrs = [1, 2]", "no part snrs; there are bicubic, filter"),
        ("snr = 30", "snr: expected two numbers"),
        ("noise = [0, 1]", "noise: expected a number"),
        ("noise = 1.5", "noise: need 0 to 1, got 1.5"),
        ("snr = [40, 20]", "snr: expected [lowest, highest], got [40, 20]"),
        ("snr = ['a', 'b']", "snr: need 0.1 to 1e+06"),
        ("snr = [1, 2, 3]", "snr: expected [lowest, highest], got [1, 2, 3]"),
        ("partial_shares = []", "partial_shares: expected two numbers"),
        ("snr = [1", "not TOML"),
        ("snr = '\xff'", "not TOML"),
    ],
)
def test_a_file_that_is_no_lr_model_is_one_line(tmp_path, text, message):
    path = tmp_path / "bad.toml"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(PoanError) as error:
        lr_model(str(path))
    assert message in str(error.value)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_a_model_of_another_name_or_a_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(PoanError, match=r"expected scanner, bicubic, truncated, kspace or"):
        lr_model("cubic")
    with pytest.raises(PoanError, match="No such file"):
        lr_model(str(tmp_path / "absent.toml"))


def test_a_tile_for_calibration_follows_the_checkpoints_lr_model():
    hr = 300 * noise((64, 64))
    for method in ("bicubic", "kspace"):
        lr = lr_of(hr, 2, {"method": method, "scale": 2})
        assert np.array_equal(lr, degrade(hr, 2, method))
    noisy = {**asdict(NOTHING), "noise": 1.0, "snr": (15.0, 15.0)}
    said = LRModel(method="scanner", acquisition=Acquisition(**noisy)).facts(2)
    lr, clean = lr_of(hr, 2, said, seed=4), degrade(hr, 2, "truncated")
    # 1,024 voxels: the deviation to 2.2 %, three sigma
    assert np.median(clean) / (lr - clean).std() == pytest.approx(15, rel=0.07)
    assert np.array_equal(lr, lr_of(hr, 2, said, seed=4))
    assert not np.array_equal(lr, lr_of(hr, 2, said, seed=5))
    some = LRModel(method="scanner", acquisition=replace(NOTHING, bicubic=1.0)).facts(2)
    assert np.array_equal(lr_of(hr, 2, some), degrade(hr, 2, "bicubic"))
