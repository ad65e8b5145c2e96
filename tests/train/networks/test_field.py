"""The networks that POAN is compared with, and POAN's ablations."""

import math
import re

import pytest
import torch

from poan_runtime.errors import PoanError
from poan_train import cli, networks
from poan_train.checkpoint import load_network
from poan_train.networks.csn import MergeAndRun
from poan_train.networks.rdn import RDNConfig, ResidualDenseBlock
from poan_train.networks.seran import ReasoningAttention, SERANConfig
from poan_train.paper.ablations import ABLATIONS, changes
from poan_train.resample import cubic_matrix

TINY = {
    "poan": {"channels": 8, "blocks": 2, "poab_after": 1, "embedding": 4},
    "edsr": {"channels": 8, "blocks": 2},
    "rdn": {"channels": 8, "growth": 4, "blocks": 2, "layers": 2},
    "csn": {"channels": 8, "growth": 4, "blocks": 2, "layers": 2},
    "seran": {"channels": 8, "blocks": 2, "attention_every": 1, "descriptors": 3, "relation": 4},
    "vdsr": {"channels": 8, "layers": 4},
    "srcnn": {"channels": (8, 4)},
}


def tiny_network(arch, scale=2, **more):
    torch.manual_seed(0)
    return networks.build(arch, networks.make_config(arch, scale, **{**TINY[arch], **more}))


def parameters(arch, scale, **more):
    with torch.device("meta"):
        network = networks.build(arch, networks.make_config(arch, scale, **more))
    return sum(p.numel() for p in network.parameters())


def weights(arch, **more):
    with torch.device("meta"):
        network = networks.build(arch, networks.make_config(arch, 2, **more))
    return sum(p.numel() for p in network.parameters() if p.ndim == 4)


def rgb(arch, scale, channels):
    """Parameters of the same network with three channels in and out, as the papers count."""
    return parameters(arch, scale) + 2 * (channels * 9 + channels * 9 + 1)


def test_edsr_has_the_parameters_that_its_paper_states_for_rgb():
    assert rgb("edsr", 4, 256) / 1e6 == pytest.approx(43, abs=0.5)
    assert rgb("edsr-baseline", 4, 64) / 1e6 == pytest.approx(1.5, abs=0.05)


def test_edsr_and_rdn_have_the_parameters_that_public_implementations_count_for_rgb():
    assert rgb("edsr", 2, 256) == 40_729_603
    assert rgb("edsr-baseline", 2, 64) == 1_369_859
    assert [rgb("rdn", s, 64) for s in (2, 3, 4)] == [22_123_395, 22_308_035, 22_271_107]


@pytest.mark.parametrize(
    ("kernels", "stated"), [((9, 1, 5), 8_032), ((9, 3, 5), 24_416), ((9, 5, 5), 57_184)]
)
def test_srcnn_has_the_weights_that_its_paper_states(kernels, stated):
    assert weights("srcnn", kernels=kernels) == stated


def test_vdsr_has_twenty_layers_and_665_thousand_weights():
    network = networks.build("vdsr", networks.make_config("vdsr", 2))
    assert sum(isinstance(m, torch.nn.Conv2d) for m in network.modules()) == 20
    assert weights("vdsr") == 9 * 64 + 18 * 9 * 64 * 64 + 9 * 64 == 664_704


@pytest.mark.parametrize("arch", [a for a in networks.ARCHITECTURES if a.endswith("-lite")])
def test_the_lite_networks_have_poan_lites_parameter_count_within_3_percent(arch):
    assert parameters(arch, 2) == pytest.approx(parameters("poan-lite", 2), rel=0.03)


WITHOUT_EFFECT = {
    "poan": ("theta.bias", "phi.bias"),  # queries and keys are centred over the tile
    "seran": ("squeeze.bias", "phi.bias"),  # a softmax takes no notice of a constant
}


@pytest.mark.parametrize("arch", TINY)
def test_every_parameter_of_every_network_learns(arch):
    network = tiny_network(arch).double()
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 1, 9, 8, dtype=torch.float64, generator=generator)

    def loss():
        return network(x).square().mean()

    loss().backward()
    gradient = {name: parameter.grad for name, parameter in network.named_parameters()}
    for name, of_one in gradient.items():
        inert = name.endswith(WITHOUT_EFFECT.get(arch, ("nothing",)))
        # float64: rounding alone leaves 1e-19
        assert (float(of_one.norm()) < 1e-15) == inert, name

    # along the gradient the loss rises as fast as the gradient is long
    slope = torch.stack([g.norm() for g in gradient.values()]).norm()
    h, ends = 1e-6, []
    with torch.no_grad():
        for step in (h, -2 * h):
            for name, parameter in network.named_parameters():
                parameter += step * gradient[name] / slope
            ends.append(float(loss()))
    # central differences err by h squared, and by 1e-16 / h of a loss of size 1
    assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(float(slope), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("arch", [a for a in TINY if a != "poan"])
def test_every_network_traces_with_a_fixed_tile_and_any_batch(arch):
    network = tiny_network(arch, scale=3).eval()
    batch = torch.export.Dim("batch", min=1, max=8)
    with torch.no_grad():
        example = torch.rand(2, 1, 8, 8)
        program = torch.export.export(network, (example,), dynamic_shapes=({0: batch},))
        for n in (1, 5):
            x = torch.rand(n, 1, 8, 8)
            # the same fp32 kernels in another batch size: last-bit differences
            assert torch.allclose(program.module()(x), network(x), rtol=1e-4, atol=1e-5)
    names = {
        node.target.overloadpacket.__name__
        for node in program.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
    }
    assert not names & {"_local_scalar_dense", "nonzero", "col2im", "upsample_bicubic2d"}
    assert not any("linalg" in name for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("arch", [a for a, e in networks.ARCHITECTURES.items() if e.small])
def test_poan_train_trains_each_small_network_by_its_name(arch, scan_folder, tmp_path):
    out = tmp_path / "a.pt"
    arguments = ["--data", scan_folder, "--contrast", "T2", "--scale", 2, "--arch", arch]
    arguments += ["--degradation", "kspace", "--batch", 1, "--patch", 8, "--steps", 1]
    assert cli.main([*map(str, arguments), "--precision", "fp32", "--out", str(out)]) == 0
    network, facts = load_network(out)
    assert facts.arch == arch
    assert facts.network["grid"] == "kspace"
    assert facts.training["lr"] == 1e-3
    assert network(torch.rand(1, 1, 6, 5)).shape == (1, 1, 12, 10)


@pytest.mark.parametrize("arch", networks.ARCHITECTURES)
def test_every_config_survives_its_json_form(arch):
    config = networks.make_config(arch, 3, grid="kspace")
    assert networks.config_from_json(arch, networks.config_to_json(config)) == config


def bicubic(x, scale, grid="centre"):
    up_h, up_w = (
        torch.tensor(cubic_matrix(n, scale * n, grid=grid), dtype=x.dtype) for n in x.shape[-2:]
    )
    return up_h @ x @ up_w.T


@pytest.mark.parametrize("grid", ["centre", "kspace"])
@pytest.mark.parametrize("arch", ["vdsr", "edsr", "rdn", "csn", "seran"])
def test_a_network_whose_last_layer_is_zero_returns_the_bicubic_image(arch, grid):
    skip = {} if arch == "vdsr" else {"image_skip": "bicubic"}
    network = tiny_network(arch, 3, grid=grid, **skip).double()
    last = network.body[-1] if arch == "vdsr" else network.tail[-1]
    for parameter in last.parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.rand(1, 1, 6, 5, dtype=torch.float64)
    assert torch.allclose(network(x), bicubic(x, 3, grid), rtol=0, atol=1e-12)


def test_srcnn_works_on_the_bicubic_image():
    network = tiny_network("srcnn", grid="kspace").double()
    for layer in network.body[::2]:  # each passes its first channel on
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        layer.weight.data[0, 0, layer.kernel_size[0] // 2, layer.kernel_size[1] // 2] = 1
    x = torch.rand(1, 1, 6, 5, dtype=torch.float64) + 1  # positive: ReLU passes it
    assert torch.allclose(network(x), bicubic(x, 2, "kspace"), rtol=0, atol=1e-12)


def test_a_dense_layer_sees_every_feature_before_it():
    torch.manual_seed(0)
    block = ResidualDenseBlock(RDNConfig(scale=2, channels=3, growth=2, layers=3, blocks=1))
    x = torch.randn(1, 3, 5, 4)
    a = torch.relu(block.layers[0](x))
    b = torch.relu(block.layers[1](torch.cat([x, a], 1)))
    c = torch.relu(block.layers[2](torch.cat([x, a, b], 1)))
    assert torch.equal(block(x), block.fuse(torch.cat([x, a, b, c], 1)) + x)
    with torch.no_grad():
        block.layers[0].weight.mul_(2)
    assert not torch.equal(block(x), block.fuse(torch.cat([x, a, b, c], 1)) + x)


def test_merge_and_run_adds_the_mean_of_the_inputs_to_each_branchs_output():
    torch.manual_seed(0)
    unit = MergeAndRun(width=4, growth=2, layers=2)
    residual, dense = torch.randn(2, 1, 4, 5, 5)
    out = unit(residual, dense)
    mean = (residual + dense) / 2
    assert torch.allclose(out[0], unit.residual(residual) + mean)
    assert torch.allclose(out[1], unit.dense(dense) + mean)


def test_merge_and_run_is_idempotent_where_the_branches_are_silent():
    unit = MergeAndRun(width=4, growth=2, layers=2)
    for parameter in unit.parameters():
        torch.nn.init.zeros_(parameter)
    once = unit(*torch.randn(2, 1, 4, 5, 5))
    assert torch.equal(once[0], once[1])
    assert torch.equal(unit(*once)[0], once[0])


def attention_block(**more):
    torch.manual_seed(0)
    values = {"channels": 5, "descriptors": 3, "relation": 4, "attention_scale": 0.7}
    return ReasoningAttention(SERANConfig(scale=2, **{**values, **more})).double()


def test_serans_block_is_its_formulas_written_out_location_by_location():
    block = attention_block()
    x = torch.randn(1, 5, 3, 4, dtype=torch.float64)
    points = x[0].flatten(1).T  # (hw, C)

    def linear(layer, v):
        bias = 0 if layer.bias is None else layer.bias
        return layer.weight.reshape(layer.weight.shape[0], -1) @ v + bias

    squeeze = torch.stack([linear(block.squeeze, p) for p in points]).softmax(dim=0)  # (hw, K)
    values = torch.stack([linear(block.value, p) for p in points])
    found = torch.stack([(squeeze[:, k, None] * values).sum(0) for k in range(3)])  # (K, C)
    refined = []
    for k in range(3):
        scores = [linear(block.theta, found[k]) @ linear(block.phi, found[j]) for j in range(3)]
        share = torch.stack(scores).softmax(0)
        moved = sum(share[j] * linear(block.reason, found[j]) for j in range(3))
        refined.append(found[k] + moved)
    expected = []
    for p in points:
        select = linear(block.select, p).softmax(0)
        y = sum(select[k] * refined[k] for k in range(3))
        expected.append(p + 0.7 * linear(block.out, y))
    expected = torch.stack(expected).T.reshape(1, 5, 3, 4)
    assert torch.allclose(block(x), expected, rtol=0, atol=1e-13)


def test_serans_block_starts_as_the_identity_where_asked():
    x = torch.randn(1, 5, 3, 4, dtype=torch.float64)
    assert torch.equal(attention_block(zero_start=True)(x), x)
    assert torch.equal(attention_block(attention_scale=0.0)(x), x)


def test_serans_softmaxes_run_in_float32_inside_a_half_precision_network():
    block = attention_block().half().eval()
    with torch.no_grad():
        program = torch.export.export(block, (torch.rand(1, 5, 4, 4).half(),))
    graphs = [m.graph for m in program.graph_module.modules() if hasattr(m, "graph")]
    nodes = [node for graph in graphs for node in graph.nodes]
    types = [node.meta["val"].dtype for node in nodes if "softmax" in str(node.target)]
    assert types == [torch.float32] * 3


def test_attention_follows_every_so_many_blocks():
    network = networks.build("seran-lite", networks.make_config("seran-lite", 2))
    kinds = [isinstance(m, ReasoningAttention) for m in network.body]
    assert [i for i, here in enumerate(kinds) if here] == [8, 17]
    assert math.isclose(network.body[8].scale, 0.1)


SPATIAL = {  # point, single-scale patch, pyramid
    "A": (False, False, False),
    "B": (True, False, False),
    "C": (False, True, False),
    "D": (False, False, True),
    "E": (True, True, False),
    "F": (False, True, True),
    "G": (True, False, True),
    "H": (True, True, True),
}


@pytest.mark.parametrize("arch", ["poan", "poan-lite"])
@pytest.mark.parametrize("row", SPATIAL)
def test_table_2_takes_the_spatial_branches_apart(row, arch):
    config = networks.make_config(arch, 2, **changes(arch, f"table2-{row}"))
    point, patch, pyramid = SPATIAL[row]
    assert config.point is point
    assert config.levels == ((1.0,) if patch else ()) + ((0.8, 0.6, 0.4) if pyramid else ())
    assert config.channel == "ncab"


def test_table_3_takes_the_two_attentions_apart():
    configs = {r: networks.make_config("poan", 4, **changes("poan", f"table3-{r}")) for r in "ABCD"}
    assert [configs[r].has_spatial for r in "ABCD"] == [False, False, True, True]
    assert [configs[r].channel for r in "ABCD"] == ["none", "ncab", "none", "ncab"]
    assert [configs[r].has_poab for r in "ABCD"] == [False, True, True, True]
    assert configs["D"] == networks.make_config("poan", 4)
    assert len(ABLATIONS) == 8 + 4 + 2


@pytest.mark.parametrize(
    ("arch", "values", "message"),
    [
        ("edsr", {"scale": 5}, "edsr: scale must be one of"),
        ("rdn", {"layers": 0}, "rdn: layers: expected at least 1, got 0"),
        ("csn", {"channels": 7}, "csn: channels must be even"),
        ("seran", {"attention_every": 50}, "need 1 <= attention_every <= blocks, got 50, 40"),
        ("vdsr", {"layers": 1}, "vdsr: layers.* at least 2, got 1"),
        ("srcnn", {"kernels": (9, 4, 5)}, "srcnn: kernels must be odd"),
    ],
)
def test_a_config_that_cannot_be_is_refused_in_one_line(arch, values, message):
    with pytest.raises(PoanError, match=message):
        networks.make_config(arch, **{"scale": 2, **values})


def test_an_ablation_of_another_network_is_refused():
    with pytest.raises(PoanError, match=r"table2-A changes one of poan, poan-lite, .*, not edsr"):
        changes("edsr", "table2-A")
    with pytest.raises(PoanError, match="no ablation 'table9-A'"):
        changes("poan", "table9-A")
    assert changes("edsr", None) == {}


def test_the_documented_parameter_counts_are_the_networks(repository):
    text = (repository / "docs/networks.md").read_text()
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| `")]
    documented = {}
    for _, names, *_, counts, _ in rows:
        archs = re.findall(r"`([\w-]+)`", names)
        numbers = [int(n.replace(",", "")) for n in re.findall(r"[\d,]{6,}", counts)]
        if len(archs) > 1:  # the lite sizes, at x2
            documented |= {a: [n] for a, n in zip(archs, numbers, strict=True)}
        else:
            documented[archs[0]] = numbers
    assert set(documented) == set(networks.ARCHITECTURES)
    for arch, numbers in documented.items():
        assert numbers == [parameters(arch, s) for s in networks.SCALES[: len(numbers)]], arch
