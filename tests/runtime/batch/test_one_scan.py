"""What a scan of a cohort was made with: all that decides voxels, and nothing else."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from poan_runtime.batch.bids import CONTRASTS, find_scans
from poan_runtime.batch.one_scan import Cohort, Networks, plan
from poan_runtime.engines.backend import EngineOptions
from poan_runtime.network import SPEED_ALONE, Settings, load_network
from poan_runtime.report.provenance import provenance_of


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Settings)])
def test_a_setting_is_recorded_unless_it_decides_no_voxel(
    name: str, make_dataset: Any, nearest_x2: Path, tmp_path: Path
) -> None:
    options = EngineOptions()
    cohort = Cohort(
        dataset=make_dataset(),
        out=tmp_path / "out",
        models=dict.fromkeys(CONTRASTS, str(nearest_x2)),
        settings=Settings(),
        options=options,
    )
    value = {"keep_measured": 0.5, "native": "on", "axis": 1}.get(name, 3)
    other = dataclasses.replace(cohort.settings, **{name: value})
    scan, networks = find_scans(cohort.dataset)[0], Networks(options)
    made, _ = plan(cohort, scan, networks)
    made_otherwise, _ = plan(dataclasses.replace(cohort, settings=other), scan, networks)
    assert (made == made_otherwise) == (name in SPEED_ALONE)
    with load_network(nearest_x2) as network:
        before, after = (provenance_of(network, s) for s in (cohort.settings, other))
    assert (before == after) == (name in SPEED_ALONE)
