import json

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import figure4
from poan_runtime.errors import PoanError
from poan_train import networks
from poan_train.checkpoint import read_checkpoint

SMALL = {"channels": 8, "blocks": 2, "poab_after": 1, "embedding": 2}
QUICK = ["--", "--batch", "1", "--patch", "8", "--precision", "fp32", "--val-share", "0.5"]


@pytest.fixture(autouse=True)
def _small_network(monkeypatch):
    for name, value in SMALL.items():
        monkeypatch.setitem(networks.LITE, name, value)


def network(channel, **more):
    torch.manual_seed(0)
    config = networks.make_config(
        "poan-lite", 2, channel=channel, zero_start=False, image_skip="none", **more
    )
    return networks.build("poan-lite", config).eval()


def image(n=16):
    return np.random.default_rng(0).random((n, n + 2), np.float32)


@pytest.mark.parametrize("channel", ["cab", "ncab"])
def test_the_weights_are_those_the_attention_multiplies_its_input_with(channel):
    net = network(channel)
    a = figure4.activation(net, image())
    with torch.no_grad():
        x = torch.from_numpy(a.before)[None]
        assert np.array_equal(net.body[1].channel(x)[0].numpy(), a.after)
    # one product per voxel in float32 and their sum
    assert np.allclose(a.gate[:, None, None] * a.before, a.after, rtol=0, atol=1e-6)
    if channel == "ncab":
        assert a.gate.mean() == pytest.approx(1, abs=1e-5)
    assert a.sr.shape == (32, 36)
    assert (a.cam_before >= 0).all()
    assert a.cam_after.shape == (12, 14)  # two pixels less on each side


def test_a_cam_is_the_features_weighted_by_the_slope_of_the_edge_strength():
    net = network("ncab")
    a = figure4.activation(net, image())
    step = 1e-3
    attention = net.body[1].channel
    slopes = []
    for c in range(8):  # the slope of the score along one channel, by finite differences
        scores = []
        for sign in (-1, 1):
            add = torch.zeros(1, 8, 1, 1)
            add[0, c] = sign * step
            hook = attention.register_forward_hook(lambda _, __, out, add=add: out + add)
            with torch.no_grad():
                scores.append(
                    float(figure4.edge_strength(net(torch.from_numpy(image())[None, None])))
                )
            hook.remove()
        slopes.append((scores[1] - scores[0]) / (2 * step) / a.after[0].size)
    inner = a.after[:, 2:-2, 2:-2]
    inner = inner - inner.mean((1, 2), keepdims=True)
    expected = np.maximum((np.array(slopes)[:, None, None] * inner).sum(0), 0)
    # differences of float32 scores over 2e-3: about 3e-4 of the slope
    assert np.allclose(expected, a.cam_after, rtol=0, atol=2e-2 * a.cam_after.max())


def test_the_high_frequency_share_is_one_for_a_checkerboard_and_zero_for_a_gradient():
    y, x = np.mgrid[:32, :32]
    assert figure4.high_frequency_share((y + x) % 2.0) > 0.999
    assert figure4.high_frequency_share(np.cos(2 * np.pi * y / 32)) < 1e-4
    assert figure4.high_frequency_share(np.ones((8, 8))) == 0


def test_equal_weights_count_every_channel_and_one_weight_counts_one():
    features = image()[None] * np.ones((4, 1, 1), np.float32)

    def of(gate):
        gate = np.array(gate)
        after = gate[:, None, None] * features
        return figure4.numbers(
            figure4.Activation(
                before=features,
                after=after,
                gate=gate,
                cam_before=features[0],
                cam_after=-features[0],
                sr=features[0],
            )
        )

    equal, single = of([0.5] * 4), of([1.0, 0, 0, 0])
    assert equal["effective_channels"] == pytest.approx(4)
    assert equal["gate_spread"] == 0
    assert equal["size_after_over_before"] == pytest.approx(0.5)
    assert equal["map_correlation"] == pytest.approx(1)
    assert equal["cam_correlation"] == pytest.approx(-1)
    assert equal["constant_share"] == pytest.approx(
        0.75, abs=0.03
    )  # mean²/mean of squares of U(0,1)
    assert single["effective_channels"] == pytest.approx(1)
    assert single["gate_spread"] == pytest.approx(np.sqrt(3))


@pytest.fixture
def val_folder(tmp_path):
    folder = tmp_path / "val"
    folder.mkdir()
    coarse = np.random.default_rng(5).integers(100, 900, (10, 11, 3)).astype(np.int16)
    volume = np.kron(coarse, np.ones((4, 4, 1), np.int16))
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([1, 1, 4, 1.0])), folder / "sub-9_T2w.nii.gz")
    return folder


def run(scan_folder, val_folder, out, *more):
    arguments = ["--data", scan_folder, "--val", val_folder, "--out", out, "--tile", 10]
    arguments += ["--every", 1, "--crop", 12, "--steps", 2]
    return figure4.main([*map(str, [*arguments, *more]), *QUICK])


def test_two_trainings_of_one_budget_become_a_picture_and_its_numbers(
    scan_folder, val_folder, tmp_path, capsys
):
    out = tmp_path / "figure4"
    assert run(scan_folder, val_folder, out, "--train-only", "cab") == 0
    assert not (out / "figure4.png").exists()
    assert run(scan_folder, val_folder, out) == 0
    checkpoints = sorted((out / "checkpoints").glob("*.pt"))
    assert len(checkpoints) == 2
    content = json.loads((out / "figure4.json").read_text())
    assert (content["volume"], content["slice"], content["crop"]) == ("sub-9_T2w.nii.gz", 1, 12)
    for kind, gate in (("cab", 0.5), ("ncab", 1.0)):
        assert content[kind]["training"]["channel"] == kind
        assert content[kind]["training"]["steps"] == 2
        # hardly trained: a sigmoid near 1/2, a softmax that averages to one
        assert content[kind]["numbers"]["gate_mean"] == pytest.approx(gate, rel=0.2)
        assert f"--ablation fig4-{kind}" in content[kind]["command"]
        assert content[kind]["validation"]["psnr_volume_peak"] > 5
        assert f"{kind.upper()} (poan-lite, " in content["caption"]
    assert "2 steps, 0.0 processor minutes" in content["caption"]
    with Image.open(out / "figure4.png") as picture:
        assert picture.width > 1000

    given = ["--cab", checkpoints[0], "--ncab", checkpoints[1]]
    if read_checkpoint(checkpoints[0])[0].network["channel"] == "ncab":
        given = ["--cab", checkpoints[1], "--ncab", checkpoints[0]]
    assert run(scan_folder, val_folder, tmp_path / "again", *given) == 0
    again = json.loads((tmp_path / "again/figure4.json").read_text())
    assert "command" not in again["cab"]
    assert again["ncab"]["numbers"] == content["ncab"]["numbers"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--slice", "9"], "--slice 9: sub-9_T2w.nii.gz has 3 slices"),
        (["--volume", "x.nii"], "--volume x.nii: "),
        (["--contrast", "FLAIR"], "no NIfTI volume of contrast FLAIR"),
    ],
)
def test_what_the_user_can_mend_is_one_line(
    arguments, message, scan_folder, val_folder, tmp_path, capsys
):
    assert run(scan_folder, val_folder, tmp_path / "out", *arguments) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()  # before any training


def test_a_network_without_channel_attention_is_refused():
    with pytest.raises(PoanError, match="has no channel attention"):
        figure4.activation(network("none"), image())
