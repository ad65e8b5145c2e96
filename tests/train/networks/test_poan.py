import pytest
import torch
import torch.nn.functional as F

from poan_runtime.errors import PoanError
from poan_train import networks
from poan_train.networks import attention
from poan_train.networks.attention import patch_attention_box, patch_attention_unfold
from poan_train.networks.covariance import EighPower, covariance
from poan_train.resample import cubic_matrix


def qkv(h=9, w=7, h_k=6, w_k=5, batch=2):
    torch.manual_seed(3)
    sizes = [(batch, 4, h, w), (batch, 4, h_k, w_k), (batch, 6, h_k, w_k)]
    return [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in sizes]


@pytest.mark.parametrize(("scale", "millions"), [(2, 3.19), (3, 3.38), (4, 3.34)])
def test_the_paper_size_network_has_the_parameters_of_its_described_layers(scale, millions):
    network = networks.build("poan", networks.make_config("poan", scale))
    count = sum(p.numel() for p in network.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.slow
@pytest.mark.parametrize("arch", networks.ARCHITECTURES)
@pytest.mark.parametrize("scale", networks.SCALES)
def test_every_network_returns_scale_times_the_tile(arch, scale):
    network = networks.build(arch, networks.make_config(arch, scale)).eval()
    with torch.inference_mode():
        assert network(torch.rand(1, 1, 12, 10)).shape == (1, 1, 12 * scale, 10 * scale)


@pytest.mark.parametrize("rows", [None, 1, 2, 5])
def test_box_form_equals_unfold_form_and_so_do_its_gradients(rows, monkeypatch):
    q, k, v = qkv()
    if rows:
        monkeypatch.setattr(attention, "BLOCK_ELEMENTS", rows * 7 * 30 * 2)
    box, unfold = (f(q, k, v, 10.0) for f in (patch_attention_box, patch_attention_unfold))
    # fp64: the two orders of summation differ by rounding alone
    assert (box - unfold).abs().max() <= 1e-13 * unfold.abs().max()
    weight = torch.randn_like(box)
    for a, b in zip(
        *(torch.autograd.grad((y * weight).sum(), (q, k, v)) for y in (box, unfold)), strict=True
    ):
        assert (a - b).abs().max() <= 1e-12 * b.abs().max()


def test_box_form_without_gradient_takes_the_exportable_path_and_agrees():
    q, k, v = qkv()
    with torch.no_grad():
        plain = patch_attention_box(q, k, v, 10.0)
    assert torch.equal(plain, patch_attention_box(q, k, v, 10.0)) or (
        (plain - patch_attention_box(q, k, v, 10.0)).abs().max() <= 1e-14
    )


def test_a_vanishing_key_patch_is_divided_by_the_floor_in_both_forms():
    q, k, v = (t.detach() for t in qkv())
    k[:, :, :3] = 0
    box, unfold = (f(q, k, v, 10.0) for f in (patch_attention_box, patch_attention_unfold))
    assert torch.isfinite(box).all()
    assert (box - unfold).abs().max() <= 1e-13 * unfold.abs().max()


def test_the_whole_network_agrees_between_attention_forms(tiny):
    network = tiny().double().eval()
    x = torch.rand(2, 1, 11, 13, dtype=torch.float64)
    with torch.no_grad():
        box = network(x)
        pyramid = next(m for m in network.modules() if isinstance(m, attention.PyramidAttention))
        pyramid.form = "unfold"
        unfold = network(x)
    assert (box - unfold).abs().max() <= 1e-12 * unfold.abs().max()


@pytest.mark.parametrize(("n", "m"), [(64, 51), (64, 38), (13, 7), (5, 5), (7, 21)])
def test_the_resize_matrix_is_torchs_bicubic(n, m):
    x = torch.rand(1, 1, n, 1, dtype=torch.float64)
    ours = torch.tensor(cubic_matrix(n, m, a=-0.75)) @ x[0, 0]
    theirs = F.interpolate(x, size=(m, 1), mode="bicubic", align_corners=False)[0, 0]
    assert (ours - theirs).abs().max() <= 1e-12


@pytest.mark.parametrize("alpha", [0.5, 0.3, 1.0])
def test_a_matrix_power_takes_the_power_of_each_eigenvalue(alpha):
    generator = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(3, 5, 5, dtype=torch.float64, generator=generator))
    values = torch.tensor([[1e-6, 0.1, 1.0, 2.0, 30.0]], dtype=torch.float64)
    a, expected = (q @ torch.diag_embed(v) @ q.mT for v in (values, values**alpha))
    # eigh is exact to 1e-15 of the largest eigenvalue, which is 1e-9 of the smallest
    assert torch.allclose(EighPower(alpha)(a), expected, rtol=1e-8, atol=1e-10)


def test_the_root_of_a_square_is_what_was_squared():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(3, 5, 5, dtype=torch.float64, generator=generator)
    a = a @ a.mT + torch.eye(5)
    assert torch.allclose(EighPower(0.5)(a @ a), a, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("alpha", [0.5, 0.3])
@pytest.mark.parametrize(
    "eigenvalues", [[1.0, 2.0, 3.0, 4.0], [2.0, 2.0, 2.0, 5.0], [1.0, 1.0 + 1e-9, 3.0, 3.0]]
)
def test_the_gradient_of_a_matrix_power_is_right_for_repeated_eigenvalues(alpha, eigenvalues):
    torch.manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    a = (q @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ q.mT)[None]
    power = EighPower(alpha)
    assert torch.autograd.gradcheck(lambda m: power((m + m.mT) / 2), a.requires_grad_())


def test_a_constant_tile_has_a_finite_root_and_a_finite_gradient(tiny):
    network = tiny()
    x = torch.full((1, 1, 8, 8), 0.5, requires_grad=True)
    network(x).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_covariance_keeps_its_digits_where_the_mean_is_a_thousand_deviations():
    torch.manual_seed(0)
    x = torch.randn(1, 4, 20, 20, dtype=torch.float64)
    shifted = (x + 1000).float()
    expected = torch.cov(shifted[0].double().flatten(1), correction=0)
    got = covariance(shifted, 0.0, 0.0)[0].double()
    # fp32 holds x to 6e-5 at 1000, and products of centred values to 1e-7: 1e-5 is that rounding
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
    naive = (shifted.flatten(2) @ shifted.flatten(2).mT / 400)[0] - 1000.0**2
    assert (naive.double() - expected).abs().max() > 1e-3


def test_regularisation_adds_its_share_of_the_trace_and_its_floor():
    x = torch.tensor([[[[1.0, -1.0]], [[2.0, -2.0]]]], dtype=torch.float64)
    added = covariance(x, 0.1, 0.01) - covariance(x, 0.0, 0.0)
    assert torch.allclose(added[0], (0.1 * 5 / 2 + 0.01) * torch.eye(2, dtype=torch.float64))


def test_zero_start_makes_the_attention_block_the_identity():
    config = networks.make_config("poan-lite", 2, channels=8, blocks=0, poab_after=0, embedding=4)
    block = networks.build("poan-lite", config).body[0]
    x = torch.rand(1, 8, 6, 6)
    assert torch.equal(block(x), x)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"point": False, "pyramid": (), "patch_at_full_scale": False, "channel": "none"},
        {"pyramid": (), "patch_at_full_scale": False},
        {"point": False, "pyramid": ()},
        {"point": False, "patch_at_full_scale": False},
        {"pyramid": ()},
        {"point": False},
        {"patch_at_full_scale": False},
        {},
        {"channel": "none"},
        {"channel": "cab"},
        {"point": False, "pyramid": (), "patch_at_full_scale": False},
        {"gate": "sigmoid", "point_value": "full", "alpha": 0.4},
    ],
)
def test_each_ablation_of_the_papers_tables_trains(tiny, changes):
    network = tiny(**changes)
    network(torch.rand(1, 1, 9, 8)).square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_the_bicubic_skip_alone_is_bicubic_interpolation():
    config = networks.make_config("poan-lite", 3, channels=4, blocks=0, poab_after=0, embedding=2)
    network = networks.build("poan-lite", config)
    torch.nn.init.zeros_(network.tail[-1].weight)
    torch.nn.init.zeros_(network.tail[-1].bias)
    x = torch.rand(1, 1, 6, 5)
    up_h, up_w = (torch.tensor(cubic_matrix(n, 3 * n), dtype=torch.float32) for n in (6, 5))
    assert torch.allclose(network(x)[0, 0], up_h @ x[0, 0] @ up_w.T, atol=1e-6)


def test_configurations_that_cannot_be_are_refused_in_one_line():
    with pytest.raises(PoanError, match="no network 'pan'; there are poan"):
        networks.make_config("pan", 2)
    with pytest.raises(PoanError, match="scale must be one of"):
        networks.make_config("poan", 5)
    with pytest.raises(PoanError, match="poab_after <= blocks, got 30, 20"):
        networks.make_config("poan", 2, blocks=20, poab_after=30)


def test_a_config_survives_its_json_form():
    config = networks.make_config("poan", 4, pyramid=(0.5,))
    restored = networks.config_from_json("poan", networks.config_to_json(config))
    assert restored == config
