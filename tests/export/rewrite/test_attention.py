"""The exported attention, in each form, against the trained modules."""

import copy

import pytest
import torch
import torch.nn.functional as F

from poan_export.rewrite.attention import (
    FORMS,
    Form,
    MergedSpatial,
    PointShare,
    overlap_add,
    shifted_copies,
)
from poan_train.networks.config import DENSE
from poan_train.networks.poan import POAB
from tests.tiny.networks import tiny_network

ROUNDING = 1e-12  # float64: sums of a few thousand terms in another order


def block_of(**changes: object) -> POAB:
    block = tiny_network(**changes).get_submodule("body.1")
    assert isinstance(block, POAB)
    return block.double()


def features(h: int = 9, w: int = 7) -> torch.Tensor:
    return torch.randn(2, 8, h, w, generator=torch.Generator().manual_seed(3)).double()


DENSE_COSINE = {**DENSE, "similarity": "cosine"}


@pytest.mark.slow
@pytest.mark.parametrize("size", [(9, 7), (6, 12), (4, 5)], ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"point_value": "full"},
        {"point": False, "pyramid": (0.8, 0.4), "patch_at_full_scale": True},
        {"pyramid": ()},
        {"query_stride": 1, "fold": 4.0},
        {"key_stride": 1},
        {"similarity": "dot", "patch_at_full_scale": True},
        DENSE,
        DENSE | {"point_value": "full"},
        DENSE_COSINE,
    ],
    ids=[
        "lite",
        "full values",
        "levels alone",
        "point alone",
        "every query",
        "every key",
        "dot",
        "dense",
        "dense, full values",
        "dense, cosine",
    ],
)
def test_the_merged_shares_are_the_trained_block(
    form: Form, changes: dict[str, object], size: tuple[int, int]
) -> None:
    block, x = block_of(**changes), features(*size)
    with torch.no_grad():
        expected = block.project(block.spatial(x))
        merged = MergedSpatial(block, form)(x)
    torch.testing.assert_close(
        merged, expected, rtol=0, atol=ROUNDING * float(expected.abs().max())
    )
    assert float(expected.abs().max()) > 0.1


def test_a_share_left_out_is_noticed() -> None:
    block, x = block_of(), features()
    merged = MergedSpatial(block, "box")
    merged.point = None
    with torch.no_grad():
        gap = (merged(x) - block.project(block.spatial(x))).abs().max()
    assert float(gap) > 1e-3


def test_shifts_and_overlap_add_are_unfold_and_fold() -> None:
    x = features(5, 6)
    torch.testing.assert_close(
        shifted_copies(x).unflatten(1, (9, 8)).transpose(1, 2).flatten(1, 2).flatten(2),
        F.unfold(x, 3, padding=1),
        rtol=0,
        atol=0,
    )
    y = torch.randn(2, 72, 5, 6, generator=torch.Generator().manual_seed(1)).double()
    folded = F.fold(
        y.unflatten(1, (9, 8)).transpose(1, 2).flatten(1, 2).flatten(2), (5, 6), 3, padding=1
    )
    torch.testing.assert_close(overlap_add(y), folded, rtol=0, atol=1e-14)


def test_scores_divided_for_half_precision_are_the_same_attention() -> None:
    block, x = block_of(similarity="dot"), 1e3 * features()
    merged = MergedSpatial(block.float(), "box")
    assert isinstance(merged.point, PointShare)
    share = copy.deepcopy(merged.point)
    share.divide_scores()
    seen: list[torch.Tensor] = []
    for part in (merged.point, share):
        part.scores.softmax.register_forward_pre_hook(lambda _, scores: seen.append(scores[0]))
    with torch.no_grad():
        assert torch.equal(merged.point(x.float()), share(x.float()))  # a power of two is exact
    assert float(seen[0].abs().max()) > 65504  # fp16 ends there
    assert torch.equal(seen[1] * 1024, seen[0])
