"""Which runs there are, and the table of them."""

import pytest

from benchmarks.attention_pays import (
    ENGINES,
    KINDS,
    THRICE,
    VARIANTS,
    graph_of,
    parser,
    planned,
    table,
    timing,
    train_command,
)
from poan_train import networks


def run(variant, seed, psnr):
    return {
        "variant": variant,
        "seed": seed,
        "psnr": dict.fromkeys(KINDS, psnr),
        "parameters": 1234,
        "steps": 750,
        "cpu_seconds": 1800.0,
        "commands": [f"poan-train {variant} {seed}"],
    }


def test_three_variants_take_three_seeds_and_come_first():
    order = list(planned(list(VARIANTS)))
    assert order[:9] == [(name, seed) for seed in range(3) for name in THRICE]
    assert order[9:] == [(name, 0) for name in VARIANTS if name not in THRICE]


def test_a_run_goes_on_only_where_a_checkpoint_is(tmp_path):
    args = parser().parse_args(["--data", "a", "--val", "b", "--hold-out", "s1", "--steps", "7"])
    fresh = train_command(VARIANTS["context"], args, 2, tmp_path / "fresh.pt")
    assert "--resume" not in fresh
    assert fresh[fresh.index("--hold-out") + 1] == "s1"
    assert (fresh[fresh.index("--steps") + 1], fresh[fresh.index("--seed") + 1]) == ("7", "2")
    (tmp_path / "stopped.pt").touch()
    assert "--resume" in train_command(VARIANTS["context"], args, 2, tmp_path / "stopped.pt")


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_a_network(name):
    variant = VARIANTS[name]
    changes = {k: tuple(v) if isinstance(v, list) else v for k, v in variant.changes.items()}
    config = networks.make_config(variant.arch, 2, **changes)
    assert networks.config_from_json(variant.arch, networks.config_to_json(config)) == config


def test_the_table_has_the_mean_over_seeds_and_says_what_was_not_run():
    runs = [run("dense", 0, 30.0), run("dense", 1, 32.0), run("context", 0, 29.5)]
    text = table(runs, {"dense": {"onnxruntime-fp32": 12.345, "openvino-f32": 6.0}})
    row = next(line for line in text.splitlines() if line.startswith("| dense |"))
    assert row.startswith("| dense | 2 | 31.00 ± 1.41 | 31.00 ± 1.41 |")
    assert "| 12.35 / 6.00 | 1,234 |" in row or "| 12.34 / 6.00 | 1,234 |" in row
    assert "| context | 1 | 29.50 |" in text
    assert "| seran-lite | not run |" in text
    assert "1.50 core-hours" in text
    assert "750 steps each" in text
    assert "    poan-train dense 1" in text
    columns = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(columns) == 1


def test_the_table_compares_with_no_attention_seed_by_seed():
    runs = [run("edsr-lite", 0, 30.0), run("edsr-lite", 1, 31.0), run("dense", 1, 31.25)]
    runs.append(run("dense", 0, 30.25))
    runs[2]["cpu_seconds"] = runs[3]["cpu_seconds"] = 5400.0
    text = table(runs, {})
    assert "- dense less edsr-lite, same seeds (2): bicubic +0.250, truncated +0.250" in text
    assert "a training step takes 3.00 of edsr-lite's processor time." in text


@pytest.mark.slow
def test_each_variant_is_timed_in_each_engine():
    pytest.importorskip("openvino", reason="needs openvino")
    found = timing(["context"], 2)
    assert set(found["ms_per_tile"]["context"]) == set(ENGINES)
    assert [len(s) for s in found["samples"]["context"].values()] == [2, 2]


def test_the_timed_graph_has_one_output():
    assert [output.name for output in graph_of(VARIANTS["context"]).graph.output] == ["sr"]
