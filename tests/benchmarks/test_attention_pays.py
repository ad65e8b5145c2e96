"""Which runs there are, and the table of them."""

import pytest

from benchmarks.attention_pays import KINDS, THRICE, VARIANTS, graph_of, planned, table
from poan_train import networks


def run(variant, seed, psnr):
    return {
        "variant": variant,
        "seed": seed,
        "psnr": dict.fromkeys(KINDS, psnr),
        "parameters": 1234,
        "cpu_seconds": 1800.0,
        "commands": [f"poan-train {variant} {seed}"],
    }


def test_the_first_seed_of_all_comes_first_and_three_variants_take_three():
    order = list(planned(list(VARIANTS)))
    assert order[: len(VARIANTS)] == [(name, 0) for name in VARIANTS]
    assert sorted(order[len(VARIANTS) :]) == sorted((n, s) for n in THRICE for s in (1, 2))


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
    assert "    poan-train dense 1" in text
    columns = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(columns) == 1


def test_the_timed_graph_has_one_output():
    assert [output.name for output in graph_of(VARIANTS["context"]).graph.output] == ["sr"]
