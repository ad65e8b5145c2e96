"""Patches at a stride, scores without a unit, and whether a trained block is alive."""

import itertools
import json

import pytest
import torch
import torch.nn.functional as F

from poan_runtime.errors import PoanError
from poan_train import networks
from poan_train.networks.attention import (
    PDSB,
    level_size,
    patch_attention_box,
    patch_attention_unfold,
)
from poan_train.networks.audit import flatness, gate_change
from poan_train.networks.config import DENSE
from poan_train.networks.covariance import NCAB, CovariancePooling
from poan_train.networks.patches import Patches, border, from_patches, to_patches

STRIDES = [(3, 3), (3, 1), (1, 3), (1, 1)]
SIZES = [(9, 6), (10, 8), (7, 11), (1, 2)]


def qkv(size, dtype=torch.float64):
    torch.manual_seed(3)
    h, w = size
    return [torch.randn(2, c, *s, dtype=dtype) for c, s in ((4, (h, w)), (4, (6, 9)), (5, (6, 9)))]


def patch_at(x, row, column):
    """The 3x3 patch of x (C, h, w) whose first pixel is (row, column), zero outside."""
    c, h, w = x.shape
    patch = torch.zeros(c, 3, 3, dtype=x.dtype)
    for i, j in itertools.product(range(3), range(3)):
        if 0 <= row + i < h and 0 <= column + j < w:
            patch[:, i, j] = x[:, row + i, column + j]
    return patch


def corners(size, stride):
    rows, columns = (
        range(-1, n - 1) if stride == 1 else range(-(n % 3), n + n % 3, 3) for n in size
    )
    return list(itertools.product(rows, columns))


def by_hand(query, key, value, scale, rule):
    """Patch attention of one image, written as its definition, patch by patch."""
    if rule.cosine:
        query, key = (x - x.mean(dim=(1, 2), keepdim=True) for x in (query, key))
    keys = [patch_at(key, *at) for at in corners(key.shape[1:], rule.key_stride)]
    values = [patch_at(value, *at) for at in corners(key.shape[1:], rule.key_stride)]
    h, w = query.shape[1:]
    out = torch.zeros(value.shape[0], h, w, dtype=value.dtype)
    for row, column in corners((h, w), rule.query_stride):
        q = patch_at(query, row, column)
        q = q / max(q.norm(), 1e-4) if rule.cosine else q
        scores = torch.stack([(q * k).sum() / max(k.norm(), 1e-4) for k in keys])
        weights = torch.softmax(scale * scores, 0)
        y = sum(a * v for a, v in zip(weights, values, strict=True))
        for i, j in itertools.product(range(3), range(3)):
            if 0 <= row + i < h and 0 <= column + j < w:
                out[:, row + i, column + j] += y[:, i, j] / rule.fold
    return out


@pytest.mark.slow
@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("strides", STRIDES, ids=str)
def test_patch_attention_at_any_stride_is_its_definition_patch_by_patch(strides, size, cosine):
    rule = Patches(query_stride=strides[0], key_stride=strides[1], fold=2.0, cosine=cosine)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):  # sums of 45 terms
        q, k, v = qkv(size, dtype)
        expected = torch.stack([by_hand(q[i], k[i], v[i], 7.0, rule) for i in range(2)])
        forms = [patch_attention_unfold, *([patch_attention_box] if strides == (1, 1) else [])]
        for form in forms:
            assert (
                form(q, k, v, 7.0, rule) - expected
            ).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_patches_are_those_of_unfold_and_their_overlap_add_is_fold(size, stride):
    x = torch.randn(2, 5, *size, dtype=torch.float64)
    padding = tuple(border(n, stride) for n in size)
    unfolded = F.unfold(x, 3, padding=padding, stride=stride)  # (B, C 9, P)
    ours = to_patches(x, stride)
    assert torch.equal(ours, unfolded.unflatten(1, (5, 9)).permute(0, 3, 2, 1).flatten(2))
    folded = F.fold(unfolded, size, 3, padding=padding, stride=stride)
    assert torch.allclose(from_patches(ours, size, stride), folded, rtol=0, atol=1e-14)


def pdsb(**changes):
    torch.manual_seed(0)
    values = {"channels": 8, "embedding": 4, "blocks": 0, "poab_after": 0, **changes}
    return PDSB(networks.make_config("poan-lite", 2, **values)).double()


CHANGES = [
    {},
    {"point": True, "patch_at_full_scale": True},
    {"similarity": "dot", "point": True},
    {"fold": 3.0, "pyramid": (0.5,)},
]


@pytest.mark.parametrize("size", [(12, 9), (10, 11), (2, 3)], ids=str)
@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_the_fused_block_is_the_sum_of_its_branches(changes, size):
    block, x = pdsb(**changes), torch.randn(2, 8, *size, dtype=torch.float64)
    fused = block(x)
    block.apart = True
    # float64: sums of a few hundred terms in another order
    assert (fused - block(x)).abs().max() <= 1e-13 * fused.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("size", [(12, 12), (13, 14), (4, 5)], ids=str)
@pytest.mark.parametrize("changes", [*CHANGES, {"key_stride": 1}, {"query_stride": 1}], ids=str)
def test_a_flip_of_the_input_flips_the_answer_of_the_block(changes, size):
    block = pdsb(**changes).float()
    x = torch.randn(1, 8, *size)
    y = block(x)
    for axes in ((2,), (3,), (2, 3)):
        # float32 rounding; the patches of a flipped map are the flipped patches for every size
        assert (block(x.flip(axes)) - y.flip(axes)).abs().max() <= 1e-5 * y.abs().max()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_position_gets_a_value_and_constant_values_stay_what_they_are(size):
    q, k, v = qkv(size)
    y = patch_attention_unfold(
        q, k, torch.ones_like(v), 7.0, Patches(query_stride=3, key_stride=3, fold=1.0, cosine=True)
    )
    assert torch.allclose(y, torch.ones_like(y), rtol=0, atol=1e-13)


@pytest.mark.parametrize("size", range(1, 70))
def test_keys_at_stride_3_are_whole_patches_of_features(size):
    for level in (1.0, 0.8, 0.6, 0.4):
        m = level_size(size, level, 3)
        assert m % 3 == 0
        assert abs(m - size * level) <= 1.5 or m == 3


def test_brightness_changes_neither_attention_nor_z_where_they_have_no_unit():
    torch.manual_seed(0)
    x = torch.randn(1, 8, 12, 12, dtype=torch.float64)
    rule = Patches(query_stride=3, key_stride=3, cosine=True)
    assert torch.allclose(rule.weights(x, x, 10.0), rule.weights(255 * x, x + 3, 10.0), atol=1e-12)
    pool = CovariancePooling(networks.make_config("poan-lite", 2, floor=0.0))
    assert torch.allclose(pool(x), pool(255 * x + 3), rtol=1e-9)
    pool = CovariancePooling(networks.make_config("poan-lite", 2, z_norm="none", floor=0.0))
    assert torch.allclose(255 * pool(x), pool(255 * x + 3), rtol=1e-9)


@pytest.mark.parametrize("alpha", [0.5, 0.3])
def test_z_is_one_for_channels_that_vary_alike_and_do_not_correlate(alpha):
    config = networks.make_config("poan-lite", 2, alpha=alpha)
    signs = torch.tensor(list(itertools.product((-5.0, 5.0), repeat=4)), dtype=torch.float64)
    x = signs.T.reshape(1, 4, 4, 4)  # each channel is -5 in one half, +5 in the other
    assert torch.allclose(CovariancePooling(config)(x), torch.ones(1, 4).double(), atol=1e-9)


@pytest.mark.parametrize(("unit", "mean"), [("mean", 1.0), ("sum", 1 / 32)])
def test_the_softmax_gate_averages_to_one_or_sums_to_one(unit, mean):
    torch.manual_seed(0)
    gate = NCAB(networks.make_config("poan-lite", 2, gate_unit=unit)).weights(torch.randn(3, 32))
    assert torch.allclose(gate.mean(dim=1), torch.full((3,), mean), rtol=1e-6)
    assert gate.std() > 0.05 * mean


def shapes(count, side, seed):
    """Images (N, 1, side, side) of discs and stripes, and the same at half the size."""
    g = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(*[torch.arange(side, dtype=torch.float32)] * 2, indexing="ij")
    images = []
    for _ in range(count):
        image = torch.zeros(side, side)
        for cy, cx, r, v in torch.rand(6, 4, generator=g):
            inside = ((y / side - cy) ** 2 + (x / side - cx) ** 2).sqrt() < 0.1 + 0.3 * r
            image[inside] = v * (0.6 + 0.4 * torch.sin(x * (0.2 + v)))[inside]
        images.append(image)
    hr = torch.stack(images)[:, None]
    return F.avg_pool2d(hr, 2), hr


def trained(**changes):
    torch.manual_seed(0)
    values = {"channels": 16, "embedding": 8, "blocks": 2, "poab_after": 1, "point": True}
    network = networks.build(
        "poan-lite", networks.make_config("poan-lite", 2, **{**values, **changes})
    )
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    lr, hr = shapes(8, 48, seed=1)
    for _ in range(60):
        optimiser.zero_grad()
        (network(lr) - hr).abs().mean().backward()
        optimiser.step()
    return network.eval()


@pytest.mark.slow
def test_a_small_trained_networks_attention_is_not_uniform_and_its_gate_depends_on_z():
    lr, _ = shapes(4, 66, seed=2)
    network = trained(patch_at_full_scale=True)
    found, gates = flatness(network, lr), gate_change(network, lr)
    assert set(found) == {
        f"body.1.{b}" for b in ("point", *map("level {:g}".format, (1, 0.8, 0.6, 0.4)))
    }
    assert max(found.values()) < 0.95
    assert gates["body.1.channel"] >= 0.05


@pytest.mark.slow
def test_the_dense_block_as_published_is_neither():
    lr, _ = shapes(4, 66, seed=2)
    network = trained(**DENSE)
    assert max(flatness(network, lr).values()) > 0.95
    assert gate_change(network, lr)["body.1.channel"] < 0.05


def test_flatness_is_1_for_a_uniform_attention_and_0_for_a_single_key():
    lr, _ = shapes(2, 36, seed=2)
    for scale, expected in ((1e-9, 1.0), (1e9, 0.0)):
        network = networks.build(
            "poan-lite", networks.make_config("poan-lite", 2, softmax_scale=scale)
        )
        assert list(flatness(network, lr).values()) == pytest.approx([expected] * 3, abs=1e-3)


def test_a_checkpoint_that_names_none_of_the_new_fields_is_dense():
    dense = networks.make_config("poan-lite-dense", 2)
    saved = networks.config_to_json(dense)
    old = {name: value for name, value in saved.items() if name not in DENSE}
    assert len(old) == len(saved) - len(DENSE)
    assert networks.config_from_json("poan-lite", json.loads(json.dumps(old))) == dense
    new = networks.make_config("poan-lite", 2)
    restored = json.loads(json.dumps(networks.config_to_json(new)))
    assert networks.config_from_json("poan-lite", restored) == new


def test_blocks_may_follow_several_residual_blocks():
    config = networks.make_config("poan-lite", 2, more_poab_after=(16,))
    network = networks.build("poan-lite", config)
    kinds = [type(m).__name__ for m in network.body]
    assert [i for i, kind in enumerate(kinds) if kind == "POAB"] == [8, 17]
    assert len(kinds) == 16 + 2 + 1


def test_the_global_context_is_a_vector_of_the_tiles_means():
    torch.manual_seed(0)
    values = {"point": False, "pyramid": (), "channel": "context", "zero_start": False}
    config = networks.make_config("poan-lite", 2, channels=4, blocks=0, poab_after=0, **values)
    block = networks.build("poan-lite", config).body[0].double()
    x = torch.randn(1, 4, 6, 5, dtype=torch.float64)
    vector = block.channel(x)
    assert vector.shape == (1, 4, 1, 1)
    assert torch.allclose(vector, block.channel(x.flip(2)), atol=1e-14)
    assert torch.allclose(block(x), block.out(vector + x) + x, atol=1e-14)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_stride": 2}, "query_stride must be 1 or 3, got 2"),
        ({"key_stride": 0}, "key_stride must be 1 or 3, got 0"),
        ({"fold": 0.0}, "need point_stride >= 1 and fold > 0, got 3, 0.0"),
        ({"more_poab_after": (17,)}, "need 0 <= poab_after <= blocks, got 17, 16"),
    ],
)
def test_a_block_that_cannot_be_is_refused(changes, message):
    with pytest.raises(PoanError, match=message):
        networks.make_config("poan-lite", 2, **changes)
