"""2,000 seeded spoilt inputs, and what earlier runs of the fuzzer found, each by its number."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import poan_runtime
from poan_runtime.errors import PoanError
from poan_runtime.models.manifest import parse_manifest
from tests.fuzz.__main__ import fuzz, names, run_case
from tests.tiny.models import manifest

CASES = 2000


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_spoilt_inputs_are_accepted_or_one_line(name: str) -> None:
    from tests.fuzz.targets import TARGETS

    found = fuzz(round(CASES * TARGETS[name][1]), seed=0, only=name)
    assert found["findings"] == []
    assert found["cases"] >= 100


@pytest.mark.parametrize(
    ("name", "seed", "case"),
    [
        ("headers", 0, 40),  # a voxel of 3.4e38: overflow where the measured band is compared
        ("vectors", 0, 387),  # numpy's header parser meets half a statement
        ("vectors", 0, 36),  # bytes that numpy takes for a pickle
        ("vectors", 0, 75),  # two names in the zip that disagree
        ("manifests", 0, 247),  # a number of 400 digits
        ("graphs", 0, 3),  # a name in the graph that is no UTF-8
        ("checkpoints", 0, 1),  # torch seeks before the start of the file
        ("checkpoints", 1, 4215),  # torch warns of a pickle protocol
        ("manifests", 1, 733),  # a file's name of 5,000 characters
        ("graphs", 1, 3853),  # loads, and cannot run
        ("graphs", 1, 2547),  # loads, and its input's name is no UTF-8
    ],
)
def test_a_finding_stays_mended(name: str, seed: int, case: int, tmp_path: Path) -> None:
    if name not in names():
        pytest.skip(f"needs what {name} are read with")
    assert run_case(name, tmp_path, seed, case) in ("accepted", "refused")


@pytest.mark.parametrize("offset", [float("-inf"), float("inf"), float("nan"), -352.0, 1e30])
def test_an_offset_that_is_no_place_in_the_file_is_one_line(
    offset: float, make_scan: Any, nearest_x2: Path, tmp_path: Path
) -> None:
    scan = make_scan("scan.nii")
    data = bytearray(scan.read_bytes())
    data[108:112] = struct.pack("<f", offset)
    scan.write_bytes(data)
    with pytest.raises(PoanError):
        poan_runtime.upscale_file(scan, tmp_path / "out.nii", nearest_x2)
    assert [*tmp_path.iterdir()] == [scan]


@pytest.mark.parametrize("slope", [0.0, float("nan"), 1.0])
@pytest.mark.parametrize("inter", [float("inf"), float("nan")])
def test_no_header_with_an_infinite_intercept_is_written(
    slope: float, inter: float, make_scan: Any, nearest_x2: Path, tmp_path: Path
) -> None:
    import nibabel as nib

    scan = make_scan("scan.nii")
    data = bytearray(scan.read_bytes())
    data[112:120] = struct.pack("<ff", slope, inter)
    scan.write_bytes(data)
    poan_runtime.upscale_file(scan, tmp_path / "out.nii", nearest_x2)
    raw = struct.unpack("<ff", (tmp_path / "out.nii").read_bytes()[112:120])
    assert np.isfinite(raw).all()
    assert np.asarray(nib.load(tmp_path / "out.nii").dataobj).max() > 0


def test_a_voxel_size_that_halves_to_zero_is_written_as_the_smallest_normal_number(
    make_scan: Any, nearest_x2: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import nibabel as nib

    scan = make_scan("scan.nii")
    data = bytearray(scan.read_bytes())
    data[80:84] = struct.pack("<f", 1e-45)
    scan.write_bytes(data)
    poan_runtime.upscale_file(scan, tmp_path / "out.nii", nearest_x2)
    header = nib.load(tmp_path / "out.nii").header
    assert header["pixdim"][1] == np.finfo(np.float32).tiny
    assert caplog.records == []  # nibabel mends a size of 0, and says so


@pytest.mark.parametrize("large", [3.4e38, -3.4e38, 1e-45])
def test_values_at_the_ends_of_float32_give_no_warning_but_a_count(
    large: float, make_scan: Any, nearest_x2: Path, tmp_path: Path
) -> None:
    data = np.random.default_rng(0).uniform(1, 100, (20, 18, 3)).astype(np.float32)
    data[3:6] = large
    scan = make_scan("scan.nii", data=data, dtype="<f4")
    outcome = poan_runtime.upscale_file(scan, tmp_path / "out.nii", nearest_x2)
    assert all("\n" not in warning for warning in outcome.warnings)
    fine = poan_runtime.read_volume(tmp_path / "out.nii").data
    assert np.isfinite(fine).all()
    # two float32 roundings by the unit
    np.testing.assert_allclose(fine[6], np.float32(large), rtol=3e-7, atol=1e-37)


@pytest.mark.parametrize("field", ["tile", "scale", "gmac_per_tile", "overlap"])
def test_a_number_that_no_float_holds_is_one_line(field: str) -> None:
    with pytest.raises(PoanError, match=f"{field}: expected"):
        parse_manifest(manifest("0" * 64) | {field: 10**400})
