"""Multiply-accumulates by part, against a count by hand."""

import pytest

from poan_export.rewrite.attention import Form
from poan_export.rewrite.network import rewrite, rules_for
from poan_export.rewrite.root import Scheme
from poan_export.trace.cost import gmac_per_part, macs_per_part
from poan_train.networks import build, make_config

C, E, SIDE = 8, 4, 10
PIXELS = SIDE**2


def cost(form: Form, **changes: object) -> dict[str, int]:
    shape = {"channels": C, "embedding": E, "blocks": 2, "poab_after": 1, "pyramid": (0.5,)}
    config = make_config("poan", 2, **shape, patch_at_full_scale=False, **changes)
    network = build("poan", config).eval()
    scheme = Scheme(name="quintic", iterations=7)
    return macs_per_part(rewrite(network, rules_for(scheme, form)), SIDE)


@pytest.mark.parametrize(("form", "per_pair"), [("box", E + C), ("unfold", 9 * (E + C))])
def test_each_part_costs_what_is_counted_by_hand(form: Form, per_pair: int) -> None:
    level = 5**2
    resize = C * (5 * SIDE * SIDE + 5 * SIDE * 5)  # rows, then columns, as matrix products
    assert cost(form) == {
        # head, two blocks of two convolutions, the last one; POAB's 1x1 and the gate's layers
        "backbone": PIXELS * (9 * C + 5 * 9 * C * C + C * C) + 2 * C * C,
        # theta, phi, g and out; scores and mix
        "point attention": PIXELS * 4 * E * C + PIXELS**2 * 2 * E,
        # query; key, value and the projection at the level; pairs
        "patch attention": (
            PIXELS * E * C + resize + level * (E * C + 2 * C * C) + PIXELS * level * per_pair
        ),
        # covariance, and the products of the iteration
        "square root": PIXELS * C * C + Scheme(name="quintic", iterations=7).products * C**3,
        "tail": PIXELS * 9 * C * 4 * C + 4 * PIXELS * 9 * C,
    }


def test_a_part_that_is_absent_is_not_listed() -> None:
    assert set(cost("box", point=False)) == {"backbone", "patch attention", "square root", "tail"}
    assert set(cost("box", channel="none", point=False)) == {"backbone", "patch attention", "tail"}


def test_the_manifest_gets_the_count_in_1e9() -> None:
    network = build("srcnn", make_config("srcnn", 2)).eval()
    macs = macs_per_part(network, 64)
    assert gmac_per_part(network, 64) == {
        part: pytest.approx(count / 1e9, abs=5e-7) for part, count in macs.items()
    }
