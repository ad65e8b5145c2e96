"""The page of the architecture is true, and the code keeps the sizes that it promises."""

import ast
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

import poan_runtime

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/architecture.md"
PACKAGES = ("poan_runtime", "poan_export", "poan_train")
NAMED = re.compile(r"`((?:[\w.-]+/)*[\w-]+(?:\.(?:py|json|md)|/))`")
"""A file or folder in backquotes."""
FROM_AN_EXPORT = ("manifest.json", "shipped/NAME/")
"""Files and folders that are named for what they are, not for where they lie."""
LONGEST_FUNCTION, LONGEST_FILE, MEDIAN_FUNCTION = 60, 400, 9
LONG_FUNCTIONS: dict[str, str] = {
    "benchmarks/paper_tables/__main__.py:parser": "one option after the other",
}
CONFORM = {
    "check_backend": {
        "poan_runtime/engines/cores.py:TileByTile": "tests/runtime/engines/test_cores.py",
        "poan_runtime/engines/kserve/backend.py:KserveBackend": (
            "tests/runtime/engines/kserve/test_kserve.py"
        ),
        "poan_runtime/engines/onnxrt.py:OnnxRuntimeBackend": (
            "tests/runtime/engines/test_backend.py"
        ),
        "poan_runtime/engines/tensorrt/backend.py:TensorRTBackend": (
            "tests/runtime/engines/tensorrt/test_lanes.py"
        ),
        "poan_runtime/engines/tensorrt/with_pycuda.py:PycudaBackend": (
            "tests/runtime/engines/tensorrt/test_with_pycuda.py"
        ),
        "poan_runtime/report/explain.py:RepeatVoxels": "tests/runtime/report/test_explain.py",
        "poan_runtime/tiles/ensemble.py:SelfEnsemble": "tests/runtime/tiles/test_ensemble.py",
        "poan_train/evaluate.py:TorchBackend": "tests/train/test_evaluate.py",
        "benchmarks/busy.py:SlowDevice": "tests/benchmarks/test_busy.py",
    },
    "check_source": {
        "poan_runtime/as_measured.py:NativeSource": "tests/runtime/test_as_measured.py",
        "poan_runtime/images/dicom/read.py:DicomSource": "tests/runtime/images/dicom/test_read.py",
        "poan_runtime/images/mgh.py:MghSource": "tests/runtime/images/test_mgh.py",
        "poan_runtime/images/nifti/read.py:Scan": "tests/runtime/images/nifti/test_read.py",
        "poan_runtime/images/source.py:ArraySource": "tests/runtime/images/test_source.py",
    },
    "check_sink": {
        "poan_runtime/images/both.py:Both": "tests/runtime/images/test_both.py",
        "poan_runtime/images/dicom/derived.py:DerivedSeries": (
            "tests/runtime/images/dicom/test_derived.py"
        ),
        "poan_runtime/images/nifti/write.py:NiftiSink": "tests/runtime/images/nifti/test_write.py",
        "poan_runtime/images/source.py:ArraySink": "tests/runtime/images/test_source.py",
    },
}
"""Each suite: the implementations, and the test that runs the suite on each."""


def modules(*folders: str) -> Iterator[tuple[str, ast.Module]]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def suite_of(node: ast.ClassDef) -> str | None:
    """The suite that a class must pass, by the protocol that it keeps."""
    bases = {ast.unparse(base) for base in node.bases}
    methods = {method.name for method in node.body if isinstance(method, ast.FunctionDef)}
    if "Protocol" in bases:
        return None
    if "Backend" in bases:
        return "check_backend"
    if "read_slices" in methods or "ArraySource" in bases:
        return "check_source"
    return "check_sink" if {"begin", "finish"} <= methods or "ArraySink" in bases else None


def test_each_implementation_of_a_protocol_is_held_by_its_suite() -> None:
    found: dict[str, set[str]] = {suite: set() for suite in CONFORM}
    for path, module in modules(*PACKAGES, "benchmarks"):
        for node in ast.walk(module):
            if isinstance(node, ast.ClassDef) and (suite := suite_of(node)) is not None:
                found[suite].add(f"{path}:{node.name}")
    assert found == {suite: set(tests) for suite, tests in CONFORM.items()}
    for suite, tests in CONFORM.items():
        for implementation, test in tests.items():
            text = (ROOT / test).read_text()
            assert f"{suite}(" in text, f"{test} does not run {suite} on {implementation}"


def resolved(name: str, row: list[str], section: str) -> Path | None:
    """What a name on the page stands for: from the root, a package, or a folder of its row.

    In a section about one package that package is looked into first.
    """
    about = [package for package in PACKAGES if f"`{package}`" in section]
    places = [*(ROOT / package for package in about), ROOT]
    places += [ROOT / package for package in PACKAGES]
    places += [place / folder for place in places for folder in row if folder.endswith("/")]
    return next((place / name for place in places if (place / name).exists()), None)


def names_on_the_page() -> Iterator[tuple[str, Path | None]]:
    section = ""
    for line in PAGE.read_text().splitlines():
        section = line if line.startswith("## ") else section
        row = NAMED.findall(line)
        for name in row:
            if name not in FROM_AN_EXPORT:
                yield name, resolved(name, row, section)


def test_the_page_names_nothing_that_is_not_there() -> None:
    assert [name for name, path in names_on_the_page() if path is None] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_the_page_names_every_room(package: str) -> None:
    named = {path.resolve() for _, path in names_on_the_page() if path is not None}
    rooms = {path.parent for path in (ROOT / package).rglob("__init__.py")} - {ROOT / package}
    rooms |= {p for p in (ROOT / package).glob("*.py") if not p.name.startswith("__")}
    assert {str(room.relative_to(ROOT)) for room in rooms - named} == set()


@pytest.mark.slow
def test_functions_and_files_are_short() -> None:
    lengths, long, files = [], {}, {}
    for path, module in modules(*PACKAGES, "benchmarks", "tests"):
        lines = len((ROOT / path).read_text(encoding="utf-8").splitlines())
        if lines > LONGEST_FILE:
            files[path] = lines
        for node in ast.walk(module):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                length = node.end_lineno - node.lineno + 1
                if path.startswith(PACKAGES):
                    lengths.append(length)
                if length > LONGEST_FUNCTION:
                    long[f"{path}:{node.name}"] = length
    assert set(long) == set(LONG_FUNCTIONS)
    assert not files, files
    assert statistics.median(lengths) <= MEDIAN_FUNCTION


RAISES = {"load_network", "read_volume", "shipped_models", "upscale", "upscale_file"}


@pytest.mark.parametrize("name", poan_runtime.__all__)
def test_each_public_name_says_what_it_takes_gives_and_raises(name: str) -> None:
    thing = getattr(poan_runtime, name)
    said = thing.__doc__ or ""
    assert ">>>" in said or "Example" in said or "::" in said, "an example"
    if name in RAISES - {"shipped_models"}:
        assert "PoanError" in said
    if not isinstance(thing, type):
        return
    for member, value in vars(thing).items():
        if not member.startswith("_") and (callable(value) or isinstance(value, property)):
            assert value.__doc__, f"{name}.{member}"
