"""What an export takes from the checkpoint's facts."""

from dataclasses import replace
from typing import Any

import pytest

from poan_export.export import grid_of
from poan_runtime.errors import PoanError
from poan_train.degrade import GRID
from tests.tiny.networks import facts_of, tiny_network


def grid(degradation: dict[str, Any]) -> str:
    return grid_of(replace(facts_of(tiny_network()), degradation=degradation))


@pytest.mark.parametrize("method", GRID)
def test_an_export_lies_on_the_grid_of_its_lr(method: str) -> None:
    assert grid({"method": method, "scale": 2}) == GRID[method]


def test_a_new_method_is_exported_on_its_own_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GRID, "corner", "kspace")
    assert grid({"method": "corner"}) == "kspace"
    assert grid({}) == "centre", "a checkpoint from before the method was stated: bicubic"


def test_lr_that_is_not_known_is_refused() -> None:
    with pytest.raises(PoanError, match="expected scanner, bicubic, truncated, kspace, got spiral"):
        grid({"method": "spiral"})
