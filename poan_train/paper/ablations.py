"""The ablations of POAN's paper as named changes to POANConfig.

Table 2 takes the spatial branches apart (point, patch, pyramid), Table 3 the two attentions, Fig.
4 compares channel attentions. That Table 2 keeps NCAB in every row is our reading [open], as is
that its single-scale patch branch is a pyramid level at 1.0.
"""

from collections.abc import Mapping
from typing import Any

from poan_runtime.errors import PoanError

PYRAMID = (0.8, 0.6, 0.4)


def _spatial(point: bool, patch: bool, pyramid: bool) -> dict[str, Any]:
    levels = PYRAMID if pyramid else ()
    return {"point": point, "patch_at_full_scale": patch, "pyramid": levels}


ABLATIONS: Mapping[str, Mapping[str, Any]] = {
    "table2-A": _spatial(point=False, patch=False, pyramid=False),
    "table2-B": _spatial(point=True, patch=False, pyramid=False),
    "table2-C": _spatial(point=False, patch=True, pyramid=False),
    "table2-D": _spatial(point=False, patch=False, pyramid=True),
    "table2-E": _spatial(point=True, patch=True, pyramid=False),
    "table2-F": _spatial(point=False, patch=True, pyramid=True),
    "table2-G": _spatial(point=True, patch=False, pyramid=True),
    "table2-H": _spatial(point=True, patch=True, pyramid=True),
    "table3-A": _spatial(point=False, patch=False, pyramid=False) | {"channel": "none"},
    "table3-B": _spatial(point=False, patch=False, pyramid=False) | {"channel": "ncab"},
    "table3-C": _spatial(point=True, patch=True, pyramid=True) | {"channel": "none"},
    "table3-D": _spatial(point=True, patch=True, pyramid=True) | {"channel": "ncab"},
    "fig4-cab": {"channel": "cab"},
    "fig4-ncab": {"channel": "ncab"},
}
ABLATED = ("poan", "poan-lite", "poan-dense", "poan-lite-dense")
"""The architectures that these changes fit."""


def changes(arch: str, ablation: str | None) -> Mapping[str, Any]:
    """The changes to ``arch`` that ``ablation`` names; none for None.

    Raises PoanError if there is no such ablation or it does not fit the architecture.
    """
    if ablation is None:
        return {}
    if ablation not in ABLATIONS:
        raise PoanError(f"no ablation {ablation!r}; there are {', '.join(ABLATIONS)}")
    if arch not in ABLATED:
        raise PoanError(f"{ablation} changes one of {', '.join(ABLATED)}, not {arch}")
    return ABLATIONS[ablation]
