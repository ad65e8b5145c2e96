"""The five fixed kinds of LR: what is measured, where, and against what."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from poan_runtime.intensity import intensity_unit
from poan_runtime.signal.measured import difference, put_back
from poan_train import evaluate, networks
from poan_train.acquire import KINDS, Scan, acquire
from poan_train.checkpoint import Facts, save_checkpoint
from poan_train.data import cached_pair, default_cache
from poan_train.degrade import degrade, sinc
from poan_train.kinds import case_of, gains_kept, head, kinds_table, score, summaries
from poan_train.metrics import psnr_within, ssim, ssim_within
from poan_train.subjects import find_sources


@pytest.fixture
def pair(scan_folder):
    (source,) = find_sources(scan_folder, "T1")
    return cached_pair(source, 2, "truncated", None, default_cache())


def write_checkpoint(path, method, contrast="T2"):
    """A poan-lite whose tail is zero: it is bicubic interpolation, tile by tile."""
    config = networks.make_config("poan-lite", 2, channels=4, blocks=1, poab_after=1, embedding=2)
    network = networks.build("poan-lite", config)
    for parameter in network.tail[-1].parameters():
        torch.nn.init.zeros_(parameter)
    facts = Facts(
        arch="poan-lite",
        network=networks.config_to_json(config),
        contrast=contrast,
        degradation={"method": method, "scale": 2},
        intensity={},
    )
    save_checkpoint(path, facts, network.state_dict())
    return path


def evaluated(tmp_path, scan_folder, checkpoint, *extra):
    out = tmp_path / "e.json"
    base = ["--ckpt", checkpoint, "--data", scan_folder, "--tile", 0, "--json", out]
    assert evaluate.main([*map(str, base), *extra]) == 0
    return json.loads(out.read_text())


def test_a_bicubic_network_gains_what_bicubic_has_over_the_better_of_bicubic_and_sinc(
    tmp_path, scan_folder, capsys
):
    checkpoint = write_checkpoint(tmp_path / "b.pt", "bicubic")
    picture = ["--png", str(tmp_path / "e.png")]
    content = evaluated(tmp_path, scan_folder, checkpoint, "--lr-model", "all", *picture)
    assert content["kinds"] == list(KINDS)
    assert [(r["kind"], r["volume"][:5]) for r in content["volumes"]] == [
        (kind, name) for kind in KINDS for name in ("sub-1", "sub-2")
    ]
    for row in content["volumes"]:
        # whole slices: the network's own interpolation in fp32
        assert row["sr"]["psnr"] == pytest.approx(row["bicubic"]["psnr"], abs=1e-3)
        best = max(row["bicubic"]["psnr"], row["sinc"]["psnr"])
        assert row["gain_psnr"] == pytest.approx(row["sr"]["psnr"] - best, abs=1e-12)
    assert [m["kind"] for m in content["means"]] == list(KINDS)
    assert capsys.readouterr().out.count("\n") == 2 + 10 + 5
    with Image.open(tmp_path / "e.png") as sheet:
        assert sheet.size == (6 * 320, 10 * 336)


def test_a_network_for_scanners_is_measured_on_every_kind_and_one_for_bicubic_the_papers_way(
    tmp_path, scan_folder
):
    scanner = write_checkpoint(tmp_path / "s.pt", "scanner", contrast="MR")
    content = evaluated(tmp_path, scan_folder, scanner)
    assert content["kinds"] == list(KINDS)
    assert {r["contrast"] for r in content["volumes"]} == {"T1", "T2"}
    plain = evaluated(tmp_path, scan_folder, write_checkpoint(tmp_path / "b.pt", "bicubic"))
    assert "psnr_volume_peak" in plain["mean"]["sr"]
    some = evaluated(tmp_path, scan_folder, scanner, "--lr-model", "snr15", "truncated")
    assert some["kinds"] == ["snr15", "truncated"]


def test_what_the_measured_band_gains_is_that_of_the_whole_band_put_back(pair):
    case = case_of(pair, 2, "truncated")
    interpolated = evaluate.bicubic(case.lr, 2, "centre")
    estimates = {"sr": interpolated, "bicubic": interpolated, "sinc": sinc(case.lr, 2)}
    found = gains_kept(case, estimates, 2)
    best = max(psnr_within(case.hr, estimates[rival], case.mask) for rival in ("bicubic", "sinc"))
    kept = put_back(interpolated, difference(case.lr, interpolated, 2), 2)
    whole = psnr_within(case.hr, kept, case.mask)
    assert found["1"] == pytest.approx(whole - best, abs=1e-3)
    assert list(found.values()) == sorted(found.values())
    assert found["0.1"] < whole - best - 0.1


def test_a_network_on_the_k_space_grid_has_no_kinds(tmp_path, scan_folder, capsys):
    checkpoint = write_checkpoint(tmp_path / "k.pt", "kspace")
    base = ["--ckpt", str(checkpoint), "--data", str(scan_folder)]
    assert evaluate.main([*base, "--lr-model", "all"]) == 2
    assert "the kinds lie on the centre grid" in capsys.readouterr().err


FIXED = {
    "truncated": Scan(),
    "filtered": Scan(filter="tukey", shape=(0.5, 0.25)),
    "snr30": Scan(snr=30.0),
    "snr15": Scan(snr=15.0),
}
"""What every published figure was measured on, with noise of the seed 2026."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_the_same_every_time_and_in_units_of_its_own_intensity_unit(pair, kind):
    first, again = case_of(pair, 2, kind), case_of(pair, 2, kind)
    assert np.array_equal(first.lr, again.lr)
    assert intensity_unit(first.lr) == pytest.approx(1, rel=1e-6)
    # HR over LR is what it was: one factor for both
    unit = float(pair.hr.max() / first.hr.max())
    assert np.abs(first.hr * unit - pair.hr).max() < 1e-5
    if kind == "bicubic":
        assert np.abs(first.lr * unit - degrade(np.asarray(pair.hr), 2, "bicubic")).max() < 1e-5
    else:
        lr = acquire(pair.lr, FIXED[kind], pair.tissue, np.random.default_rng(2026))
        assert np.abs(first.lr * unit - lr).max() < 1e-5


def test_every_nth_slice_is_taken(pair):
    some, all_of_them = case_of(pair, 2, "truncated", every=2), case_of(pair, 2, "truncated")
    assert len(some.lr) == -(-len(all_of_them.lr) // 2)
    ratio = some.hr[1] / np.where(all_of_them.hr[2] == 0, 1, all_of_them.hr[2])
    assert np.ptp(ratio[all_of_them.hr[2] > 0]) < 1e-5


def disc(noise):
    """A ring of tissue about a dark middle, in noisy air."""
    y, x = np.mgrid[:96, :96] - 47.5
    radius = np.hypot(y, x)
    clean = np.where((radius < 36) & (radius > 12), 0.6, 0.02)
    rng = np.random.default_rng(0)
    image = np.abs(clean + noise * (rng.normal(size=(96, 96)) + 1j * rng.normal(size=(96, 96))))
    return image[None].astype(np.float32), radius


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_the_head_holds_tissue_and_what_it_encloses_and_no_air(noise):
    hr, radius = disc(noise)
    mask = head(hr)[0]
    assert mask[radius < 35].all()
    assert not mask[radius > 41].any()  # the smoothing's two sigma and a voxel


def test_the_head_is_found_by_a_share_of_its_own_tissue():
    hr, _ = disc(0.0)
    assert np.array_equal(head(2 * hr), head(hr))


def test_an_error_outside_of_the_mask_counts_for_nothing():
    rng = np.random.default_rng(0)
    truth = rng.random((2, 32, 32))
    mask = np.zeros(truth.shape, bool)
    mask[:, 8:24, 8:24] = True
    estimate = truth + 0.1
    spoiled = np.where(mask, estimate, 9.0)
    expected = 10 * np.log10(truth[mask].max() ** 2 / 0.1**2)
    assert psnr_within(truth, estimate, mask) == pytest.approx(expected, abs=1e-9)
    assert psnr_within(truth, spoiled, mask) == pytest.approx(expected, abs=1e-9)
    assert psnr_within(truth, truth, mask) == float("inf")
    assert np.isnan(psnr_within(truth, truth, mask & False))


def test_ssim_within_a_full_mask_is_ssim():
    rng = np.random.default_rng(0)
    truth = rng.random((2, 32, 32))
    estimate = truth + rng.normal(0, 0.1, truth.shape)
    full = np.ones(truth.shape, bool)
    assert ssim_within(truth, estimate, full) == pytest.approx(ssim(truth, estimate), abs=1e-12)
    half = full.copy()
    half[:, :, 16:] = False
    spoiled = np.where(np.arange(32) < 24, estimate, 9.0)  # the window reaches five voxels
    assert ssim_within(truth, spoiled, half) == ssim_within(truth, estimate, half)


def test_the_gain_is_over_the_better_and_a_summary_names_the_lowest(pair):
    case = case_of(pair, 2, "truncated")
    assert np.array_equal(case.mask, head(np.asarray(pair.hr)))
    assert not case.mask.all()
    by = {"bicubic": 0.2, "sinc": 0.1, "sr": 0.05}
    off = {name: case.hr + np.where(case.mask, error, 9) for name, error in by.items()}
    row = {"volume": "a", **score(case, off)}
    assert row["gain_psnr"] == pytest.approx(20 * np.log10(2), abs=1e-4)
    assert row["sr"]["ssim"] == ssim_within(case.hr, off["sr"], case.mask)
    worse = {**row, "gain_psnr": -1.0, "sr": {"psnr": 20.0, "ssim": 0.5}}
    mean, other = summaries([row, worse, {**worse, "kind": "snr15"}])
    assert mean["lowest_gain_psnr"] == -1.0
    assert mean["gain_psnr"] == pytest.approx((row["gain_psnr"] - 1) / 2)
    assert mean["sr"]["psnr"] == pytest.approx((row["sr"]["psnr"] + 20) / 2)
    assert (other["kind"], other["gain_psnr"]) == ("snr15", -1.0)


def test_the_table_has_a_column_for_each_method_in_the_order_of_its_head():
    figures = {
        m: {"psnr": 30.0 + i, "ssim": 0.5 + i / 10} for i, m in enumerate(("bicubic", "sinc", "sr"))
    }
    row = {"volume": "a", "kind": "snr30", "gain_psnr": 1.0, "gain_ssim": -0.1, **figures}
    caption, head_line, line = kinds_table([row]).splitlines()
    assert caption == "PSNR dB / SSIM within the head; gain over the better of bicubic and sinc"
    assert head_line.split() == ["volume", "kind", "bicubic", "sinc", "SR", "gain", "dB", "SSIM"]
    assert line.split()[2:5] == ["30.00/0.5000", "31.00/0.6000", "32.00/0.7000"]
    assert line.split()[5:] == ["+1.00", "-0.1000"]
