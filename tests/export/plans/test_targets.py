"""--engine and --sm: which library builds for which GPUs."""

import importlib.util

import pytest

from poan_runtime import extras
from poan_runtime.engines.tensorrt.build import plan as engines
from poan_runtime.engines.tensorrt.build.plan import SMS, choose_flavour, plan_name, targets
from poan_runtime.engines.tensorrt.library import load_library
from poan_runtime.errors import PoanError


@pytest.mark.parametrize(
    ("precision", "asked", "groups"),
    [
        ("fp16", None, [("80", "86", "89", "120", "121")]),
        ("bf16", None, [("80", "86", "89", "120", "121")]),
        ("fp32", None, [("80", "86", "89", "120", "121")]),
        ("fp8", None, [("89", "120", "121")]),
        ("fp16", "120,86", [("86", "120")]),
        ("fp16", "sm86, 89", [("86", "89")]),
        ("fp16", "75", [("75",)]),
        ("int8", "75,89,120", [("89", "120"), ("75",)]),
    ],
)
def test_targets_of_a_precision_are_grouped_into_plans(
    precision: str, asked: str | None, groups: list[tuple[str, ...]]
) -> None:
    assert targets(precision, asked) == groups


@pytest.mark.parametrize(
    ("precision", "asked", "message"),
    [
        ("fp16", "90", "--sm: expected some of 75,80,86,89,120,121, got '90'"),
        ("fp16", "86,", "--sm: expected some of 75,80,86,89,120,121, got 'nothing'"),
        ("fp16", "8.6", "got '8.6'"),
        ("bf16", "75", "--sm: SM75 has no bf16 arithmetic; leave it out"),
        ("fp8", "86", "--sm: SM86 has no fp8 arithmetic; leave it out"),
    ],
)
def test_a_target_that_cannot_be_is_refused_by_name(
    precision: str, asked: str, message: str
) -> None:
    with pytest.raises(PoanError) as refusal:
        targets(precision, asked)
    assert message in str(refusal.value)


def test_every_target_is_one_that_the_installed_library_has() -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
    members = load_library("tensorrt-rtx").api.ComputeCapability.__members__
    assert {f"SM{sm}" for sm in SMS} == set(members) - {"NONE", "CURRENT"}


def test_a_group_of_its_own_has_a_plan_of_its_own() -> None:
    assert plan_name(("75",)) == "engine.sm75.plan"
    assert plan_name(("75", "86")) == plan_name(("86",)) == "engine.plan"


def test_auto_takes_tensorrt_with_a_gpu_else_rtx_else_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def machine(gpu: str | None, *modules: str) -> None:
        monkeypatch.setattr(engines, "gpu_here", lambda: (gpu, "a card" if gpu else "no GPU"))
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: object() if name in modules else None
        )

    machine("8.6", "tensorrt", "tensorrt_rtx")
    assert choose_flavour("auto") == (
        "tensorrt",
        "tensorrt is installed and there is a GPU (a card)",
    )
    machine(None, "tensorrt", "tensorrt_rtx")
    assert choose_flavour("auto")[0] == "tensorrt-rtx"
    machine("8.6", "tensorrt_rtx")
    assert choose_flavour("auto")[0] == "tensorrt-rtx"
    machine("8.6")
    flavour, why = choose_flavour("auto")
    assert flavour is None
    assert extras.command("tensorrt-rtx-cu13") in why


def test_tensorrt_without_a_gpu_is_refused_and_rtx_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engines, "gpu_here", lambda: (None, "no GPU: there is no driver"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(PoanError, match=r"no GPU: there is no driver.*--engine tensorrt-rtx"):
        choose_flavour("tensorrt")


def test_a_library_that_is_not_installed_names_the_pip_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PoanError, match=r"pip install .*\[tensorrt-cu13\]'"):
        choose_flavour("tensorrt")


def test_an_engine_of_another_name_is_refused() -> None:
    with pytest.raises(PoanError, match="--engine: expected auto, none, tensorrt"):
        choose_flavour("tensorrtx")
