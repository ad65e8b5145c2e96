import json

import nibabel
import numpy as np
import pytest

from poan_train import cli, evaluate, networks
from poan_train.checkpoint import Facts, read_checkpoint, save_checkpoint
from poan_train.convention import PSNRS, SSIMS
from poan_train.degrade import GRID, sinc
from poan_train.metrics import psnr, ssim
from poan_train.paper import calibrate as room
from poan_train.paper.calibrate import CONVENTIONS, Convention, calibrate, ixi_test_sources

TRUTH = Convention(
    degradation="kspace", rounded=False, slices="foreground", psnr="whole-volume", ssim="slice"
)


def save(path, seed):
    """Blobs of different brightness per slice, one slice empty, 48x48x5, axial."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:48, :48]
    volume = np.zeros((48, 48, 5), np.int16)
    for z in range(4):
        for _ in range(8):
            cy, cx, r = rng.uniform(8, 40), rng.uniform(8, 40), rng.uniform(3, 12)
            volume[..., z][(y - cy) ** 2 + (x - cx) ** 2 < r**2] = rng.integers(5, 60) * (z + 1)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([1.0, 1.0, 4.0, 1.0])), path)


@pytest.fixture
def ixi(tmp_path):
    folder = tmp_path / "ixi"
    folder.mkdir()
    names = ["IXI002-Guys-0828-T2", "IXI012-HH-1211-T2", "IXI012-HH-1211-T1", "IXI013-HH-1212-PD"]
    for seed, name in enumerate(names):
        save(folder / f"{name}.nii.gz", seed)
    save(folder / "someone-else_T2w.nii.gz", 9)
    return folder


def table_of(convention, sources):
    """A published table as ``convention`` would have made it."""
    scores = {}
    for source in sources:
        hr = room.native_slices(source)
        for scale in (2, 3, 4):
            key = source.contrast, scale
            scores.setdefault(key, []).append(room.score_volume(hr, scale)[convention])
    return {k: {"bicubic": tuple(np.mean(v, axis=0))} for k, v in scores.items()}


@pytest.mark.parametrize(
    "truth",
    [
        TRUTH,
        Convention(
            degradation="bicubic", rounded=True, slices="all", psnr="whole-volume", ssim="volume"
        ),
    ],
)
def test_the_convention_that_made_a_table_is_found_and_said_to_match(ixi, truth):
    sources = ixi_test_sources(ixi, 8)
    table = table_of(truth, sources)
    results = calibrate(sources, table)
    assert results[0].convention == truth
    assert results[0].db_off == pytest.approx(0, abs=1e-9)
    assert results[0].matches
    assert len(results) == len(CONVENTIONS) == 96
    assert f"{truth} matches" in room.report(results, table)


def test_a_table_of_another_making_matches_no_convention(ixi):
    sources = ixi_test_sources(ixi, 8)
    table = {
        k: {"bicubic": (v["bicubic"][0] + 60, 0.1)} for k, v in table_of(TRUTH, sources).items()
    }
    results = calibrate(sources, table)
    assert not results[0].matches
    assert "nearest but does not match" in room.report(results, table)
    assert "Do not quote" in room.report(results, table)


def test_the_conventions_are_those_of_the_metrics(ixi):
    hr = room.native_slices(ixi_test_sources(ixi, 8)[-1])
    scores = room.score_volume(hr, 2)
    lr = room.degrade(hr, 2, "bicubic")
    up = room.bicubic(lr, 2, "centre")

    def got(name, peak):
        convention = Convention(
            degradation="bicubic", rounded=False, slices="all", psnr=name, ssim=peak
        )
        return scores[convention]

    for peak in ("volume", "slice"):
        expected = psnr(hr, up, peak), ssim(hr, up, peak)
        assert got(f"{peak}-peak", peak) == pytest.approx(expected, rel=1e-12)
    whole = 10 * np.log10(hr.max() ** 2 / ((hr.astype(float) - up) ** 2).mean())
    assert got("whole-volume", "slice")[0] == pytest.approx(whole, rel=1e-6)  # the peak is float32
    assert whole != pytest.approx(psnr(hr, up, "volume"), abs=0.1)


def test_ixi_volumes_are_taken_by_name_and_of_each_contrast(ixi):
    names = [s.path.name for s in ixi_test_sources(ixi, 1)]
    assert names == [
        "IXI013-HH-1212-PD.nii.gz",
        "IXI012-HH-1211-T1.nii.gz",
        "IXI012-HH-1211-T2.nii.gz",
    ]


def test_with_all_of_ixi_the_test_subjects_are_number_501_to_570(tmp_path, monkeypatch):
    for i in range(576):
        (tmp_path / f"IXI{i:03}-Guys-0001-T2.nii.gz").touch()
    found = ixi_test_sources(tmp_path, 100)
    assert [s.subject for s in found] == [f"IXI{i:03}" for i in range(500, 570)]


def test_check_ixi_prints_the_verdict(ixi, capsys):
    assert cli.main(["--check-ixi", str(ixi), "--check-volumes", "1"]) == 0
    out = capsys.readouterr().out
    assert "T2 x4" in out
    assert "published 27.86/0.8611" in out
    assert "is nearest but does not match (limits 0.1 dB, 0.002 SSIM)." in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--check-ixi", "SCANS"], "no volume named as IXI's are"),
        (["--check-ixi", "absent"], "absent: no such folder"),
        (
            ["--check-ixi", "SCANS", "--check-volumes", "0"],
            "--check-volumes must be positive, got 0",
        ),
        (["--steps", "0"], "--scale and --out are needed"),
    ],
)
def test_what_cannot_be_checked_is_one_line(arguments, message, scan_folder, capsys):
    named = [str(scan_folder) if a == "SCANS" else a for a in arguments]
    assert cli.main(named) == 2
    error = capsys.readouterr().err
    assert error.startswith("poan-train: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_volume_of_background_is_named(tmp_path):
    path = tmp_path / "IXI002-Guys-0828-T2.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((24, 24, 3), np.int16), np.eye(4)), path)
    with pytest.raises(room.PoanError, match=r"IXI002-.*nii.gz: no slice shows anything but"):
        calibrate(ixi_test_sources(tmp_path, 1))


def bicubic_checkpoint(path, method):
    """poan-eval's bicubic column is what is asked for; the network is not."""
    config = networks.make_config("edsr-lite", 2, channels=2, blocks=1, grid=GRID[method])
    facts = Facts(
        arch="edsr-lite",
        network=networks.config_to_json(config),
        contrast="T2",
        degradation={"method": method, "scale": 2},
        intensity={},
    )
    save_checkpoint(path, facts, networks.build("edsr-lite", config).state_dict())
    return path


@pytest.mark.parametrize(
    "convention",
    [
        TRUTH,
        Convention(
            degradation="bicubic", rounded=True, slices="all", psnr="whole-volume", ssim="volume"
        ),
        Convention(
            degradation="bicubic",
            rounded=True,
            slices="foreground",
            psnr="slice-peak",
            ssim="slice",
            zero_filling="undo",
        ),
    ],
)
def test_poan_eval_under_the_printed_options_measures_what_check_ixi_did(
    convention, ixi, tmp_path, capsys
):
    source = next(s for s in ixi_test_sources(ixi, 8) if s.path.name == "IXI012-HH-1211-T2.nii.gz")
    expected = room.score_source(source, 2)[convention]
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / source.path.name).symlink_to(source.path)
    ckpt = bicubic_checkpoint(tmp_path / "e.pt", convention.degradation)
    options = convention.options.split()
    at = options.index("--degradation")
    del options[at : at + 2]
    out = tmp_path / "e.json"
    arguments = ["--ckpt", ckpt, "--data", folder, "--tile", "11", "--json", out, *options]
    assert evaluate.main([*map(str, arguments)]) == 0
    row = json.loads(out.read_text())["volumes"][0]["bicubic"]
    # the same float32 images, one divided by the intensity scale
    assert row[PSNRS[convention.psnr]] == pytest.approx(expected[0], abs=1e-4)
    assert row[SSIMS[f"{convention.ssim}-peak"]] == pytest.approx(expected[1], abs=1e-5)
    assert f"PSNR {convention.psnr}" in capsys.readouterr().out


def test_the_papers_conventions_do_not_go_with_the_kinds_of_lr(ixi, tmp_path, capsys):
    ckpt = bicubic_checkpoint(tmp_path / "e.pt", "bicubic")
    arguments = ["--ckpt", ckpt, "--data", ixi, "--lr-model", "snr30", "--round-lr"]
    assert evaluate.main([*map(str, arguments)]) == 2
    assert "are for the papers' LR, not for --lr-model" in capsys.readouterr().err


def test_zero_filling_that_is_kept_leaves_the_slices_as_they_are_in_the_file(ixi):
    """A volume whose spectrum ends at half of Nyquist: undone it halves, kept it stays."""
    path = ixi / "IXI099-HH-1299-T2.nii.gz"
    coarse = np.random.default_rng(0).random((3, 32, 32)) * 900
    fine = np.maximum(sinc(coarse, 2), 0).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(np.moveaxis(fine, 0, 2), np.diag([1, 1, 4, 1.0])), path)
    source = next(s for s in ixi_test_sources(ixi, 9) if s.subject == "IXI099")
    kept, undone = (room.native_slices(source, z) for z in ("keep", "undo"))
    assert kept.shape == (3, 64, 64)
    assert np.array_equal(kept, fine)
    assert undone.shape[1] < 40


def test_a_training_takes_the_papers_conventions_and_writes_them_down(ixi, tmp_path, capsys):
    out = tmp_path / "e.pt"
    command = ["--data", ixi, "--contrast", "T2", "--scale", "2", "--arch", "edsr-lite", "--steps"]
    command += ["1", "--batch", "1", "--patch", "8", "--out", out, "--set", "channels=2"]
    command += ["--set", "blocks=1", "--val-share", "0"]
    scanner = [*command, "--lr-model", "scanner", "--round-lr"]
    assert cli.main([*map(str, scanner)]) == 2
    assert "go with LR as papers make it" in capsys.readouterr().err
    command += ["--lr-model", "bicubic"]
    assert cli.main([*map(str, [*command, "--round-lr", "--zero-filling", "keep"])]) == 0
    facts, _, _ = read_checkpoint(out)
    assert facts.degradation["preparation"] == {
        "zero_filling": "keep",
        "slices": "foreground",
        "round_lr": True,
    }
    again = [*command, "--resume", "--round-lr"]
    again[again.index("--steps") + 1] = "2"
    assert cli.main([*map(str, again)]) == 2
    assert "LR model preparation" in capsys.readouterr().err
