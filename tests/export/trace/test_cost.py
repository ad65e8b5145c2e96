"""Multiply-accumulates by part, against a count by hand."""

import pytest

from poan_export.rewrite.attention import Form
from poan_export.rewrite.network import rewrite, rules_for
from poan_export.rewrite.root import Scheme
from poan_export.trace.cost import gmac_per_part, macs_per_part
from poan_train.networks import build, make_config

C, E, SIDE = 8, 4, 10
PIXELS = SIDE**2


def cost(form: Form, arch: str = "poan-dense", **changes: object) -> dict[str, int]:
    shape = {"channels": C, "embedding": E, "blocks": 2, "poab_after": 1, "pyramid": (0.5,)}
    config = make_config(arch, 2, **shape, patch_at_full_scale=False, **changes)
    network = build(arch, config).eval()
    scheme = Scheme(name="quintic", iterations=7)
    return macs_per_part(rewrite(network, rules_for(scheme, form)), SIDE)


@pytest.mark.parametrize(("form", "per_pair"), [("box", E + C), ("unfold", 9 * (E + C))])
def test_macs_of_each_part_are_those_counted_by_hand(form: Form, per_pair: int) -> None:
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


def test_at_stride_3_a_ninth_of_the_positions_is_a_patch_and_there_are_81_times_fewer_pairs() -> (
    None
):
    queries, keys, few = 4 * 4, 2 * 2, 3**2  # maps of 12 with its borders, 6, and 3
    costs = cost("box", "poan")
    assert costs["patch attention"] == (
        PIXELS * E * C
        + C * (6 * SIDE * SIDE + 6 * SIDE * 6)
        + 9 * keys * (E * C + 2 * C * C)
        + queries * keys * 9 * (E + C)
    )
    assert costs["point attention"] == (
        C * (3 * SIDE * SIDE + 3 * SIDE * 3) + 2 * (PIXELS + few) * E * C + PIXELS * few * 2 * E
    )


def test_a_part_that_is_absent_is_not_listed() -> None:
    assert set(cost("box", point=False)) == {"backbone", "patch attention", "square root", "tail"}
    assert set(cost("box", channel="none", point=False)) == {"backbone", "patch attention", "tail"}


def test_gmac_per_part_is_the_count_in_1e9() -> None:
    network = build("srcnn", make_config("srcnn", 2)).eval()
    macs = macs_per_part(network, 64)
    assert gmac_per_part(network, 64) == {
        part: pytest.approx(count / 1e9, abs=5e-7) for part, count in macs.items()
    }
