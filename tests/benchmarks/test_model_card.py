import json

import pytest

from benchmarks import model_card
from poan_runtime.errors import PoanError
from poan_train import evaluate


def test_the_cards_figures_are_those_of_the_measurements_kept_with_it():
    card = model_card.CARD.read_text()
    fresh = model_card.rewritten(card, model_card.render())
    assert card == fresh, "run: python -m benchmarks.model_card"


def measures(psnr, ssim=0.9):
    return {
        f"{m}_{p}_peak": v for m, v in (("psnr", psnr), ("ssim", ssim)) for p in ("volume", "slice")
    }


def volumes(*psnr, up=30.0):
    return [
        {"volume": f"{name}.nii.gz", "bicubic": measures(up, 0.8), "sr": measures(p)}
        for name, p in zip("ab", psnr, strict=True)
    ]


def add_row(results, label, *psnr, seed=0, budget=("--cpu-minutes", "4"), up=30.0):
    row = {"table": 1, "label": label, "arch": label, "contrast": "T2", "scale": 2, "seed": seed}
    trained = None if label in ("bicubic", "nlm") else {"steps": 500 + 100 * seed}
    protocol = {"budget": budget, "rates": [1e-3], "every": 4}
    content = {"row": row, "protocol": protocol, "parameters": 7, "trained": trained}
    path = results / f"paper_tables/rows/table1_T2_x2_{label}_seed{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**content, "volumes": volumes(*psnr, up=up)}))


def add_eval(results, name, *psnr, every=1):
    path = results / f"eval/{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"every": every, "volumes": volumes(*psnr)}))


def test_the_card_states_where_poan_loses_as_it_states_where_it_wins(tmp_path):
    add_eval(tmp_path, "t2_x2", 36.0, 37.0)
    add_eval(tmp_path, "sampled/t2_x2", 35.5, 36.5, every=4)
    add_eval(tmp_path, "without_attention/t2_x2", 35.375, 36.75, every=4)
    add_row(tmp_path, "bicubic", 30.0, 30.0)
    add_row(tmp_path, "nlm", 31.0, 31.0)
    add_row(tmp_path, "edsr-lite", 33.0, 34.5)
    add_row(tmp_path, "seran-lite", 34.5, 34.75)
    for seed, shift in ((0, 0.0), (1, 0.5)):
        add_row(tmp_path, "poan-lite", 33.0 + shift, 34.0 + shift, seed=seed)
    text = model_card.render(tmp_path)
    assert "| t2_x2 | mean | 30.00 / 0.8000 | 36.50 / 0.9000 | +6.50 |" in text
    row = next(line for line in text.splitlines() if line.startswith("| t2_x2 | a | 30.00 / 0.9"))
    assert row.split(" | ")[2:] == [
        *("30.00 / 0.9000", "31.00 / 0.9000", "33.00 / 0.9000", "34.50 / 0.9000"),
        *("33.25 / 0.9000", "35.50 / 0.9000 |"),
    ]
    assert (
        "- t2_x2, poan-lite of the equal budget (550 steps): +2.75 dB against NLM (ahead on 2 of 2 "
        "volumes); +0.00 dB against EDSR-lite (ahead on 1 of 2 volumes, 500 steps); -0.88 dB "
        "against SERAN-lite (ahead on 0 of 2 volumes, 500 steps)."
    ) in text
    assert "poan-train --cpu-minutes 4` (the same settings, learning rate 0.001, seed 0, 1)" in text
    assert "Slices: one in 4." in text
    assert text.endswith("(`poan-eval --without-attention` bypasses it): t2_x2 +0.125, -0.250.")
    assert "- t1_x4: poan-lite was not trained under the equal budget." in text


def test_a_column_that_was_not_measured_holds_a_dash(tmp_path):
    add_row(tmp_path, "poan-lite", 33.0, 34.0)
    assert "| t2_x2 | b |" not in model_card.render(tmp_path)  # nothing to compare with
    add_row(tmp_path, "bicubic", 30.0, 30.0)
    text = model_card.render(tmp_path)
    assert "| t2_x2 | b | 30.00 / 0.9000 | - | - | - | 34.00 / 0.9000 | - |" in text
    assert "NLM not measured; EDSR-lite not measured" in text


def test_columns_of_other_slices_or_budgets_are_refused(tmp_path):
    add_row(tmp_path, "edsr-lite", 33.0, 34.0)
    add_row(tmp_path, "poan-lite", 33.0, 34.0, up=30.1)
    with pytest.raises(PoanError, match="t2_x2: edsr-lite and poan-lite were measured on other sl"):
        model_card.render(tmp_path)
    add_row(tmp_path, "poan-lite", 33.0, 34.0, budget=("--cpu-minutes", "9"))
    with pytest.raises(PoanError, match="t2_x2: trained under several budgets"):
        model_card.render(tmp_path)


def test_the_tool_rewrites_what_stands_between_the_marks_and_nothing_else(tmp_path, capsys):
    add_eval(tmp_path, "t2_x2", 36.0, 37.0)
    card = tmp_path / "CARD.md"
    card.write_text(f"before\n{model_card.BEGIN}\nold\n{model_card.END}\nafter\n")
    arguments = ["--results", str(tmp_path), "--card", str(card)]
    assert model_card.main(arguments) == 0
    text = card.read_text()
    assert text.startswith(f"before\n{model_card.BEGIN}\n### Shipped models")
    assert text.endswith(f"\n{model_card.END}\nafter\n")
    assert "old" not in text
    assert model_card.main(arguments) == 0
    assert card.read_text() == text
    card.write_text("no marks\n")
    assert model_card.main(arguments) == 2
    assert capsys.readouterr().err.startswith("model_card: the card needs one line '<!-- figures")


def test_measuring_runs_poan_eval_on_all_slices_and_on_those_of_the_rows(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(evaluate, "main", lambda command: commands.append(command) or 0)
    add_row(tmp_path, "bicubic", 30.0, 30.0)
    model_card.measure(tmp_path / "val", tmp_path)
    assert len(commands) == 12
    every, out = (commands[1][commands[1].index(o) + 1] for o in ("--every", "--json"))
    assert (every, out) == ("4", str(tmp_path / "eval/sampled/t2_x2.json"))
    assert "--without-attention" in commands[2]
    assert commands[0][commands[0].index("--every") + 1] == "1"
    monkeypatch.setattr(evaluate, "main", lambda command: 2)
    with pytest.raises(PoanError, match="t2_x2: poan-eval failed"):
        model_card.measure(tmp_path / "val", tmp_path)
