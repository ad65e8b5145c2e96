import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from poan_train import evaluate, networks
from poan_train.checkpoint import Facts, save_checkpoint
from poan_train.evaluate import Tiling, TorchBackend, super_resolve
from poan_train.metrics import psnr, ssim
from tests.runtime.engines.conformance import check_backend


@pytest.fixture
def bicubic_checkpoint(tmp_path):
    """A poan-lite whose tail is zero: it is bicubic interpolation, tile by tile."""
    config = networks.make_config("poan-lite", 2, channels=4, blocks=1, poab_after=1, embedding=2)
    network = networks.build("poan-lite", config)
    for parameter in network.tail[-1].parameters():
        torch.nn.init.zeros_(parameter)
    path = tmp_path / "bicubic.pt"
    facts = Facts(
        arch="poan-lite",
        network=networks.config_to_json(config),
        contrast="T2",
        degradation={"method": "bicubic", "scale": 2},
        intensity={},
    )
    save_checkpoint(path, facts, network.state_dict())
    return path


@pytest.mark.parametrize("extra", [[], ["--self-ensemble"], ["--tile", "0"], ["--every", "2"]])
def test_a_network_that_is_bicubic_gains_nothing_over_bicubic(
    bicubic_checkpoint, scan_folder, tmp_path, capsys, extra
):
    out, picture = tmp_path / "e.json", tmp_path / "e.png"
    arguments = ["--ckpt", bicubic_checkpoint, "--data", scan_folder, "--tile", 20, "--json", out]
    assert evaluate.main([*map(str, [*arguments, "--png", picture]), *extra]) == 0
    content = json.loads(out.read_text())
    assert [row["volume"] for row in content["volumes"]] == ["sub-1_T2w.nii.gz", "sub-2_T2w.nii.gz"]
    for row in [*content["volumes"], content["mean"]]:
        for name, value in row["bicubic"].items():
            # tile borders inside a slice clamp where the whole slice sees its neighbour, and the
            # blend leaves a little of it
            assert row["sr"][name] == pytest.approx(value, rel=2e-3), name
    assert "mean" in capsys.readouterr().out
    with Image.open(picture) as sheet:
        assert sheet.size == (6 * 320, 2 * 336)


def smoothing(scale=2):
    """A network that sees two LR voxels to each side: two 3x3 convolutions, then nearest."""
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(1, 1, 3, padding=1), torch.nn.Conv2d(1, 1, 3, padding=1)]
    return torch.nn.Sequential(*layers, torch.nn.UpsamplingNearest2d(scale_factor=scale)).eval()


def test_a_halo_of_what_the_network_sees_makes_tiled_output_the_whole_slices():
    lr = np.random.default_rng(0).random((2, 30, 25), np.float32)
    whole, halo, none = (
        super_resolve(smoothing(), lr, 2, "centre", Tiling(tile=tile, halo=halo, overlap=3))
        for tile, halo in ((0, 2), (12, 2), (12, 0))
    )
    # the same fp32 sums in another batch, blended by weights of sum one: last-bit differences
    assert np.abs(halo - whole).max() < 1e-6
    assert np.abs(none - whole).max() > 1e-2


def test_the_tiling_is_that_of_the_architecture(tmp_path, scan_folder, capsys):
    config = networks.make_config("edsr", 2, channels=4, blocks=1)
    facts = Facts(
        arch="edsr",
        network=networks.config_to_json(config),
        contrast="T2",
        degradation={"method": "bicubic", "scale": 2},
        intensity={},
    )
    save_checkpoint(tmp_path / "e.pt", facts, networks.build("edsr", config).state_dict())
    arguments = ["--ckpt", tmp_path / "e.pt", "--data", scan_folder, "--json", tmp_path / "e.json"]
    assert evaluate.main([*map(str, arguments), "--tile", "11"]) == 0
    content = json.loads((tmp_path / "e.json").read_text())
    assert (content["tile"], content["halo"], content["overlap"]) == (11, 2, 6)
    assert evaluate.main([*map(str, arguments), "--tile", "10"]) == 2
    assert capsys.readouterr().err.endswith(
        "poan-eval: --tile 10: edsr needs 0 (whole slices) or at least 11\n"
    )
    assert Tiling.of("edsr") == Tiling(tile=66, halo=2, overlap=6)
    assert Tiling.of("poan-lite") == Tiling(tile=33, halo=0, overlap=4)


def test_without_attention_a_networks_poab_returns_its_input(tmp_path, scan_folder, capsys):
    small = {"channels": 4, "blocks": 1, "poab_after": 1, "zero_start": False}
    bare = {"channel": "none", "point": False, "pyramid": (), "patch_at_full_scale": False}
    means = {}
    for name, changes in (("with", {}), ("bare", bare)):
        torch.manual_seed(0)
        config = networks.make_config("poan-lite", 2, **small, embedding=2, **changes)
        facts = Facts(
            arch="poan-lite",
            network=networks.config_to_json(config),
            contrast="T2",
            degradation={"method": "bicubic", "scale": 2},
            intensity={},
        )
        network = networks.build("poan-lite", config)
        if name == "bare":  # the same weights but for the block
            weights = torch.load(tmp_path / "with.pt", weights_only=True)["weights"]
            weights = {k: v for k, v in weights.items() if not k.startswith("body.1.")}
            kept = {re.sub(r"^body\.2\.", "body.1.", k): v for k, v in weights.items()}
            network.load_state_dict(kept)
        save_checkpoint(tmp_path / f"{name}.pt", facts, network.state_dict())
        for extra in ([], ["--without-attention"])[: 2 if name == "with" else 1]:
            out = tmp_path / "e.json"
            arguments = ["--ckpt", tmp_path / f"{name}.pt", "--data", scan_folder, "--json", out]
            assert evaluate.main([*map(str, [*arguments, "--tile", 20]), *extra]) == 0
            means[(name, *extra)] = json.loads(out.read_text())["mean"]["sr"]
    assert means["with", "--without-attention"] == means[("bare",)]
    assert means[("with",)] != means[("bare",)]
    assert evaluate.main([*map(str, arguments), "--without-attention"]) == 2
    assert capsys.readouterr().err.endswith("--without-attention: the network has no POAB\n")


def test_a_missing_checkpoint_is_one_line_and_exit_2(tmp_path, capsys):
    code = evaluate.main(["--ckpt", str(tmp_path / "no.pt"), "--data", str(tmp_path)])
    assert code == 2
    assert capsys.readouterr().err == f"poan-eval: {tmp_path / 'no.pt'}: no such checkpoint\n"


def test_an_export_in_place_of_its_checkpoint_is_told(tmp_path, capsys):
    (tmp_path / "manifest.json").touch()
    assert evaluate.main(["--ckpt", str(tmp_path), "--data", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said == f"poan-eval: {tmp_path}: is an export; name the .pt that it was made of\n"


def test_a_picture_has_the_name_of_a_png(bicubic_checkpoint, scan_folder, tmp_path, capsys):
    arguments = ["--ckpt", bicubic_checkpoint, "--data", scan_folder, "--png", tmp_path / "x.txt"]
    assert evaluate.main([*map(str, arguments)]) == 2
    said = capsys.readouterr().err
    assert said == f"poan-eval: {tmp_path / 'x.txt'}: expected a name that ends in .png\n"
    assert not (tmp_path / "x.txt").exists()


def test_each_volume_is_named_as_it_comes_and_what_poan_made_is_left_out(
    bicubic_checkpoint, scan_folder, capsys
):
    shutil.copy(scan_folder / "sub-1_T2w.nii.gz", scan_folder / "sub-1_desc-sr_T2w.nii.gz")
    arguments = ["--ckpt", str(bicubic_checkpoint), "--data", str(scan_folder), "--every", "4"]
    assert evaluate.main([*arguments, "--tile", "20"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        f"poan-eval: warning: {scan_folder}: 1 result of poan left out",
        "volume 1 of 2: sub-1_T2w.nii.gz",
        "volume 2 of 2: sub-2_T2w.nii.gz",
    ]


def images():
    rng = np.random.default_rng(0)
    reference = rng.random((3, 32, 30)) * np.array([1.0, 3.0, 2.0])[:, None, None]
    return reference, reference + rng.normal(0, 0.05, reference.shape)


@pytest.mark.parametrize("peak", ["volume", "slice"])
def test_psnr_and_ssim_are_scikit_images(peak):
    reference, estimate = images()
    tops = [reference.max() if peak == "volume" else r.max() for r in reference]
    rows = list(zip(reference, estimate, tops, strict=True))
    expected = np.mean([peak_signal_noise_ratio(r, e, data_range=t) for r, e, t in rows])
    assert psnr(reference, estimate, peak) == pytest.approx(expected, abs=1e-9)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = np.mean([structural_similarity(r, e, data_range=t, **options) for r, e, t in rows])
    assert ssim(reference, estimate, peak) == pytest.approx(expected, abs=1e-9)


def test_slices_without_signal_are_left_out_of_the_mean():
    reference, estimate = images()
    padded = [np.concatenate([x, np.zeros((1, 32, 30))]) for x in (reference, estimate)]
    padded[1][-1] = 0.1
    assert psnr(*padded, "slice") == psnr(reference, estimate, "slice")
    assert ssim(*padded, "slice") == ssim(reference, estimate, "slice")
    assert psnr(reference, reference) == float("inf")
    assert np.isnan(ssim(np.zeros((1, 32, 30)), np.zeros((1, 32, 30))))


def test_a_network_in_torch_does_what_every_engine_does(tiny):
    check_backend(TorchBackend(network=tiny().eval(), device="cpu"), tile=12, scale=2)
