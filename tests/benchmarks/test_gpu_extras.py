"""What pip resolved for each extra, and what the GPU wheels' libraries need, as it was recorded."""

import json
import os
import shutil
import sys
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks import gpu_extras
from benchmarks.gpu_extras import (
    BUILT_HERE,
    GPU,
    NOT_ON_PYPI,
    RESULT,
    ROOT,
    absent,
    documented,
    extras,
    named,
    requirements,
    resolved,
    rows,
)


@pytest.fixture(scope="module")
def record() -> Any:
    """The committed figures."""
    return json.loads(RESULT.read_text("utf-8"))


def unmet(lines: list[str], versions: dict[str, str]) -> list[str]:
    """Requirements that these versions do not meet."""
    known = {canonicalize_name(name): version for name, version in versions.items()}
    wanted = [Requirement(line) for line in lines]
    return [
        str(one)
        for one in wanted
        if one.marker is None or one.marker.evaluate({"extra": ""})
        if known.get(canonicalize_name(one.name), "") not in one.specifier
    ]


def test_each_extra_alone_and_in_documented_groups_was_resolved_as_it_stands_today(
    record: Any,
) -> None:
    """Bounds that change, and extras that come, ask for a new run of the script."""
    for group in rows():
        versions = record["resolved"][",".join(group)]
        assert "error" not in versions, group
        assert unmet(requirements(group), versions) == [], group


def test_a_requirement_that_is_not_met_is_found() -> None:
    lines = ["numpy>=1.26", "tensorrt-rtx-cu13>=1.7,<2", "tomli>=2; python_version < '3'"]
    assert unmet(lines, {"numpy": "2.0", "tensorrt_rtx_cu13": "1.7.1"}) == []
    assert unmet(lines, {"numpy": "1.25"}) == ["numpy>=1.26", "tensorrt-rtx-cu13<2,>=1.7"]


def test_the_documented_groups_are_those_of_the_container_and_the_pages() -> None:
    assert ("gpu", "tensorrt-rtx-cu13") in documented()
    assert {("gpu",), ("tensorrt-rtx-cu12",), ("tensorrt-rtx-cu13",)} <= set(rows())
    assert not {(one,) for one in (*NOT_ON_PYPI, *BUILT_HERE)} & set(rows())
    assert set(GPU) <= set(rows())


def test_every_extra_that_a_page_names_exists() -> None:
    assert {extra for group in named() for extra in group} <= set(extras())


def test_each_card_of_the_gpu_page_has_an_extra_that_exists_or_none() -> None:
    page = (ROOT / "docs/gpu.md").read_text("utf-8")
    rows = [[cell.strip() for cell in line.split("|")] for line in page.splitlines()]
    taken = [row[4] for row in rows if len(row) == 7 and row[1] not in ("card", "---")]
    assert len(taken) == 10
    assert {extra.strip("`") for extra in taken} - {"none"} <= set(extras())


@pytest.mark.parametrize("extra", [*NOT_ON_PYPI, *BUILT_HERE])
def test_what_is_not_wholly_on_pypi_declares_what_it_needs(extra: str, record: Any) -> None:
    found = record["declared"][extra]
    assert unmet(extras()[extra][:1], {extra: found["version"]}) == []
    names = {canonicalize_name(Requirement(line).name) for line in found["requires"]}
    own = {f"{extra}-libs", f"{extra}-bindings"} if extra in NOT_ON_PYPI else {"pytools", "mako"}
    assert own <= names


@pytest.mark.parametrize("group", GPU)
def test_every_library_of_a_gpu_extra_finds_what_it_needs(
    group: tuple[str, ...], record: Any
) -> None:
    """ONNX Runtime's TensorRT provider is built for TensorRT 10, which no wheel here has."""
    found = record["libraries"][",".join(group)]
    assert found["read"] > 0
    known = {"libonnxruntime_providers_tensorrt.so": ["libnvinfer.so.10", "libnvonnxparser.so.10"]}
    assert found["missing"] == (known if "gpu" in group else {})


def test_a_library_is_absent_where_neither_a_wheel_nor_the_system_has_it() -> None:
    names = ["libc.so.6", "libcuda.so.1", "libcublasLt.so.13", "libnvinfer.so.10"]
    assert absent(names, ["libcublasLt.so.13"]) == ["libnvinfer.so.10"]


@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not installed")
def test_needed_entries_are_read_from_a_real_library() -> None:
    numpy = pytest.importorskip("numpy._core._multiarray_umath")
    assert any(name.startswith("libc.so") for name in gpu_extras.needed_by(numpy.__file__))


@pytest.mark.skipif(
    "POAN_ASK_INDEX" not in os.environ, reason="asks a package index; POAN_ASK_INDEX=1 does"
)
@pytest.mark.parametrize("group", GPU)
def test_a_gpu_extra_resolves_today(group: tuple[str, ...]) -> None:
    assert "error" not in resolved(group), sys.version


def test_what_pip_does_not_resolve_is_recorded_as_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuses(*arguments: str) -> list[Any]:
        raise ValueError("ERROR: No matching distribution found")

    monkeypatch.setattr(gpu_extras, "pip", refuses)
    assert resolved(("gpu",)) == {"error": "ERROR: No matching distribution found"}


def test_the_gpu_page_names_the_index_of_what_pypi_has_in_part() -> None:
    page = (ROOT / "docs/gpu.md").read_text("utf-8")
    assert "pip install --extra-index-url https://pypi.nvidia.com '.[tensorrt-cu13]'" in page
