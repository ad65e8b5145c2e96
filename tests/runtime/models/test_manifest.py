"""The manifest reader against its JSON Schema."""

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import poan_runtime.models.manifest
from poan_runtime.errors import PoanError
from poan_runtime.models.find import shipped_models
from poan_runtime.models.manifest import (
    PENDING,
    MatrixRoot,
    parse_manifest,
    read_manifest,
    schema_text,
)

SCHEMA = json.loads(
    Path(poan_runtime.models.manifest.__file__).with_name("manifest.schema.json").read_text()
)
HASH = "0" * 64
BATCH = {"min": 1, "opt": 2, "max": 4}
CHECK = {
    "file": "model.onnx",
    "stage": "output",
    "case": "constant",
    "metric": "relative_error",
    "value": 1e-6,
    "tolerance": None,
    "reason": "measured rounding",
}
ENGINE = {
    "flavour": "tensorrt-rtx",
    "version": "1.7.1.116",
    "compute_capabilities": ["8.0"],
    "builder_flags": [],
    "source_onnx_sha256": HASH,
    "profile": BATCH,
    "report": {},
}
ROOT = {
    "scheme": "newton-schulz",
    "iterations": 15,
    "eps": 1e-5,
    "floor": 1e-10,
    "condition_seen": 1e6,
}
CPU = {
    "engine": "openvino",
    "version": "2026.2",
    "precision": "bf16",
    "file": "model.onnx",
    "float32_parts": [["body.1.x", "body.1.z"]],
    "parity": {"verdict": "pass", "checks": []},
}
REMOVED = object()

GOOD: list[tuple[str, Any]] = [
    ("scale", 4),
    ("scale", 4.0),
    ("grid", "kspace"),
    ("square_root", ROOT),
    ("square_root", ROOT | {"condition_seen": None}),
    ("attention.form", "box"),
    ("vectors", {"name": "vectors.npz", "sha256": HASH}),
    ("files.0.engine", ENGINE),
    ("files.0.parity", {"verdict": "pending", "checks": [CHECK]}),
    ("parity.checks", [CHECK]),
    ("cpu_precisions", [CPU]),
    ("gmac_per_tile", 1.3),
    ("gmac_per_part", {"backbone": 1.0, "tail": 0.3}),
    ("intensity.percentile", 100),
    ("unheard_of", 1),
    ("degradation", {"method": "scanner"}),
    ("gains", {"truncation": 1.2, "bicubic": -0.3}),
    ("keep_measured", "on"),
    ("keep_measured", 0.1),
    ("data_licence", "CC BY 4.0"),
]
BAD: list[tuple[str, Any]] = [
    ("manifest_version", 2),
    ("manifest_version", REMOVED),
    ("name", ""),
    ("name", 3),
    ("network", []),
    ("network.parameters", -1),
    ("network.config", None),
    ("scale", 0),
    ("scale", 2.5),
    ("scale", True),
    ("scale", "2"),
    ("scale", REMOVED),
    ("tile", 0),
    ("batch.min", 0),
    ("batch.opt", REMOVED),
    ("halo", -1),
    ("gmac_per_tile", -0.1),
    ("gmac_per_tile", False),
    ("gmac_per_part", {"backbone": -1.0}),
    ("gmac_per_part", [1.0]),
    ("intensity.rule", "maximum"),
    ("intensity.percentile", 0),
    ("intensity.percentile", 101),
    ("grid", "center"),
    ("square_root", ROOT | {"iterations": 0}),
    ("square_root", ROOT | {"eps": "1e-5"}),
    ("square_root", {"scheme": "newton-schulz"}),
    ("attention.form", "full"),
    ("opset", 0),
    ("inputs.name", ""),
    ("outputs", {}),
    ("files", []),
    ("files", {}),
    ("files.0.kind", "torch"),
    ("files.0.precision", "int4"),
    ("files.0.name", "../model.onnx"),
    ("files.0.name", ".."),
    ("files.0.name", ""),
    ("files.0.islands", [1]),
    ("files.0.sha256", "ABC"),
    ("files.0.sha256", "A" * 64),
    ("files.0.engine", ENGINE | {"flavour": "trt"}),
    ("files.0.engine", ENGINE | {"profile": {}}),
    ("files.0.engine", None),
    ("files.0.parity", {"verdict": "perhaps", "checks": []}),
    ("vectors", {"name": "vectors.npz"}),
    ("vectors", REMOVED),
    ("relative_error_floor", -1),
    ("parity.verdict", "ok"),
    ("parity.checks", [CHECK | {"value": "small"}]),
    ("parity.checks", [{"file": "model.onnx"}]),
    ("training", None),
    ("created_by", "me"),
    ("gains", {"truncation": "1.2 dB"}),
    ("keep_measured", "auto"),
    ("keep_measured", None),
    ("keep_measured", 1.5),
    ("keep_measured", True),
    ("data_licence", ""),
    ("cpu_precisions", [CPU | {"float32_parts": [["a"]]}]),
    ("cpu_precisions", [CPU | {"engine": "onnxruntime"}]),
]
ONLY_THE_READER = [
    ("batch", {"min": 4, "opt": 2, "max": 8}),
    ("overlap", 14),
    ("halo", 7),
]


def changed(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    document = copy.deepcopy(document)
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    inner: Any = document
    for key in parents:
        inner = inner[key]
    if value is REMOVED:
        del inner[last]
    else:
        inner[last] = value
    return document


def schema_accepts(document: Any) -> bool:
    return bool(jsonschema.Draft202012Validator(SCHEMA).is_valid(document))


@pytest.fixture
def document(make_manifest: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return make_manifest(HASH)


def test_the_schema_file_is_the_one_that_the_dataclasses_give() -> None:
    path = Path(poan_runtime.models.manifest.__file__).with_name("manifest.schema.json")
    assert path.read_text() == schema_text(), "run: python -m poan_runtime.models.manifest > FILE"


@pytest.mark.parametrize("folder", shipped_models(), ids=lambda folder: folder.name)
def test_a_shipped_manifest_is_written_as_it_was_read(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    assert schema_accepts(json.loads(text))
    assert read_manifest(folder).text() == text


@pytest.mark.parametrize("folder", shipped_models(), ids=lambda folder: folder.name)
def test_the_reason_of_a_shipped_root_states_the_condition_that_was_seen(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert isinstance(manifest.square_root, MatrixRoot)
    reasons = {c.reason for c in manifest.parity.checks if "covariance of condition" in c.reason}
    (stated,) = (float(reason.split("condition ")[1].split()[0]) for reason in reasons)
    # the error grows with the condition: half as much again is half a digit's worth
    assert stated / 1.5 <= manifest.square_root.condition_seen <= 1.5 * stated


def test_what_this_version_does_not_know_is_kept_where_it_stood(document: dict[str, Any]) -> None:
    known = changed(document, "files.0.engine", ENGINE)
    newer = changed(changed(known, "files.0.engine.lanes", 2), "files.0.signed_by", "me")
    manifest = parse_manifest(newer)
    assert manifest.json() == newer
    changed_file = dataclasses.replace(manifest.files[0], parity=PENDING)
    assert manifest.with_file(changed_file).json()["files"][0]["engine"]["lanes"] == 2


def test_optional_fields_that_are_absent_stay_absent(document: dict[str, Any]) -> None:
    manifest = parse_manifest(document)
    assert (manifest.keep_measured, manifest.gains) == (None, {})
    assert manifest.json() == document


def test_the_schema_is_a_schema() -> None:
    validator = jsonschema.Draft202012Validator
    assert list(validator(validator.META_SCHEMA).iter_errors(SCHEMA)) == []


@pytest.mark.parametrize(("path", "value"), GOOD)
def test_reader_and_schema_accept(document: dict[str, Any], path: str, value: Any) -> None:
    candidate = changed(document, path, value)
    assert schema_accepts(candidate)
    assert parse_manifest(candidate).json() == candidate


@pytest.mark.parametrize(("path", "value"), BAD)
def test_reader_and_schema_refuse(document: dict[str, Any], path: str, value: Any) -> None:
    candidate = changed(document, path, value)
    assert not schema_accepts(candidate)
    with pytest.raises(PoanError, match=path.split(".")[0]):
        parse_manifest(candidate)


@pytest.mark.parametrize(("path", "value"), ONLY_THE_READER)
def test_the_reader_also_checks_what_spans_fields(
    document: dict[str, Any], path: str, value: Any
) -> None:
    candidate = changed(document, path, value)
    assert schema_accepts(candidate)
    with pytest.raises(PoanError, match="expected"):
        parse_manifest(candidate)


def test_the_values_arrive_in_their_fields(document: dict[str, Any]) -> None:
    document = changed(document, "files.0.engine", ENGINE)
    manifest = parse_manifest(document)
    assert (manifest.scale, manifest.tile, manifest.halo, manifest.overlap) == (2, 16, 1, 2)
    assert (manifest.batch.min, manifest.batch.opt, manifest.batch.max) == (1, 8, 32)
    assert manifest.files[0].engine is not None
    assert manifest.files[0].engine.compute_capabilities == ("8.0",)
    assert manifest.file("model.onnx") is manifest.files[0]
    assert manifest.file("other.onnx") is None


def test_an_error_names_file_field_expectation_and_value(
    document: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(changed(document, "files.0.kind", "torch")))
    with pytest.raises(PoanError) as error:
        read_manifest(tmp_path)
    assert str(error.value) == f'{path}: files[0].kind: expected one of onnx, plan, got "torch"'


@pytest.mark.parametrize("text", ["", "{", "[1, 2", '{"scale": NaN}', "\x00\xff"])
def test_what_is_not_json_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text, "latin-1")
    with pytest.raises(PoanError, match="expected JSON") as error:
        read_manifest(tmp_path)
    assert "\n" not in str(error.value)
