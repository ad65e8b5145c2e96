"""The model card and the manifests say what was measured."""

import json
import shutil

import pytest

from benchmarks import model_card
from poan_runtime.models.find import MODELS, shipped_models
from poan_runtime.models.manifest import read_manifest
from poan_train.acquire import KINDS


def row(volume, kind, gain, kept):
    return {
        "volume": f"{volume}.nii.gz",
        "kind": kind,
        "bicubic": {"psnr": 30.0},
        "sinc": {"psnr": 31.0},
        "gain_psnr": gain,
        "kept_gain": {"0.1": gain + 0.1 * (kept - gain), "1": kept},
    }


def write(results, name, gain=1.0, kept=1.25, every=2):
    rows = [row(v, kind, gain, kept) for kind in KINDS for v in ("a", "b")]
    path = results / f"eval/{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"every": every, "kinds": list(KINDS), "volumes": rows}))


@pytest.fixture
def results(tmp_path):
    for model in model_card.MODELS:
        write(tmp_path, model)
        write(tmp_path, f"{model}_set_aside", gain=0.5, kept=0.75)
    return tmp_path


def test_the_cards_figures_are_those_of_the_measurements_kept_with_it():
    card = model_card.CARD.read_text()
    assert card == model_card.rewritten(card, model_card.render()), (
        "python -m benchmarks.model_card"
    )


def test_the_manifests_say_what_the_kept_measurements_say():
    for folder in shipped_models():
        rows = model_card.read(model_card.record.RESULTS, folder.name)["volumes"]
        manifest = read_manifest(folder)
        assert manifest.keep_measured == model_card.keeps(rows)
        assert manifest.gains == model_card.gains(rows, manifest.keep_measured)


def test_as_much_is_put_back_as_costs_nothing_on_the_mean_and_no_volume_much():
    better = [row("a", "snr30", 1.0, 1.2), row("b", "snr30", 1.0, 0.95)]
    assert model_card.keeps(better) == 1.0
    # one loses 0.2 dB with the whole band, 0.02 dB with a tenth of it
    mixed = [*better, row("c", "bicubic", 1.0, 0.8)]
    assert model_card.keeps(mixed) == 0.0
    assert model_card.keeps([*mixed, row("d", "snr30", 1.0, 2.0)]) == 0.1
    assert model_card.keeps([row("a", "snr30", 1.0, 0.99)]) == 0.0
    assert model_card.gains(better, 1.0) == {"snr30": 1.07}  # (1.2 + 0.95) / 2 = 1.075, to even
    assert model_card.gains(better, 0.0) == {"snr30": 1.0}


def test_the_table_states_what_the_runtime_writes_volume_by_volume(results):
    write(results, "mr_x3", gain=-0.25, kept=-0.5)
    text = model_card.render(results)
    assert "one slice in 2." in text
    line = next(x for x in text.splitlines() if x.startswith("| mr_x2 | a |"))
    assert line.count("30.00 / 31.00 **+1.25**") == len(KINDS)
    assert "30.00 / 31.00 **-0.25**" in text  # a loss is stated like a gain, without the band
    lowest = "mr_x2 +1.25 dB, t1_x2 +1.25 dB, t2_x2 +1.25 dB, mr_x3 -0.25 dB"
    lowest += ", mr_x4 +1.25 dB, t1_x4 +1.25 dB"
    assert f"Lowest gain: {lowest}." in text
    assert "mr_x2 100%, t1_x2 100%, t2_x2 100%, mr_x3 0%, mr_x4 100%, t1_x4 100%" in text


def test_the_command_rewrites_card_and_manifests(results, tmp_path, capsys):
    card, shipped = tmp_path / "card.md", tmp_path / "shipped"
    shutil.copytree(MODELS, shipped)
    card.write_text(f"before\n{model_card.BEGIN}\nold\n{model_card.END}\nafter\n")
    where = ["--results", str(results), "--card", str(card), "--shipped", str(shipped)]
    assert model_card.main(where) == 0
    assert card.read_text().startswith(f"before\n{model_card.BEGIN}\n### Validation")
    assert card.read_text().endswith(f"{model_card.END}\nafter\n")
    told = read_manifest(shipped / "mr_x3")
    assert (told.keep_measured, told.gains) == (1.0, dict.fromkeys(KINDS, 1.25))
    write(results, "mr_x4", every=3)
    assert model_card.main(where) == 2
    assert "measure all models alike" in capsys.readouterr().err
    card.write_text("no marks")
    write(results, "mr_x4")
    assert model_card.main(where) == 2
    assert "the card needs one line" in capsys.readouterr().err


def test_a_subject_that_should_be_set_aside_must_be_there(tmp_path):
    (tmp_path / "T1_sub-gbm2_gd.nii.gz").touch()
    linked = tmp_path / "linked"
    linked.mkdir()
    with pytest.raises(model_card.PoanError, match="no volume of sub-ucsfbr08"):
        model_card.set_aside(tmp_path, linked)


def test_the_card_tells_other_tools_to_leave_tf32_off():
    card = model_card.CARD.read_text()
    assert "TF32 makes it NaN" in card
    assert "`--noTF32` to trtexec, `use_tf32=0` to ONNX Runtime" in card
