"""`manifest.json`: what the exporter promises about the models beside it, read and checked.

The JSON Schema in `manifest.schema.json` says the same for other programs; this reader has no
dependency, and its errors name file, field, what was expected and what came. Beyond the schema
it checks what spans several fields (batch order, halo and overlap against the tile).
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from poan_runtime.errors import PoanError

MANIFEST_NAME = "manifest.json"
VERSION = 1
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
HEX = set("0123456789abcdef")
Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]

T = TypeVar("T")
Json = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchRange:
    """Batch sizes that a model accepts, and the one it is tuned for."""

    min: int
    opt: int
    max: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine:
    """How a plan was built."""

    flavour: Literal["tensorrt", "tensorrt-rtx"]
    version: str
    compute_capabilities: tuple[str, ...]
    builder_flags: tuple[str, ...]
    source_onnx_sha256: str
    profile: BatchRange
    report: Json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parity:
    """Does the file answer as PyTorch does? ``pending`` where it has not been run yet."""

    verdict: Literal["pass", "fail", "pending"]
    checks: tuple[Json, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFile:
    """One model file; ``islands`` names the parts kept in fp32."""

    name: str
    kind: Literal["onnx", "plan"]
    precision: Precision
    islands: tuple[str, ...]
    sha256: str
    engine: Engine | None = None
    parity: Parity | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class CpuPrecision:
    """What a file loses where ``engine`` runs it on a CPU in less than its own precision.

    ``float32_parts``, each from one tensor to another, stay in float32 all the same: covariances
    and their roots.
    The verdict holds for one release of the engine, the first two numbers of ``version``.
    """

    engine: Literal["openvino"]
    version: str
    precision: Literal["bf16"]
    file: str
    float32_parts: tuple[tuple[str, str], ...]
    parity: Parity


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vectors:
    """Stored test vectors: ``input_<case>`` and ``output_<case>``."""

    name: str
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """A version-1 manifest. Lengths are LR voxels; ``raw`` is the whole JSON object."""

    name: str
    arch: str
    parameters: int
    scale: int
    contrast: str
    tile: int
    batch: BatchRange
    halo: int
    overlap: int
    gmac_per_tile: float
    percentile: float
    grid: Literal["centre", "kspace"]
    square_root: Json
    attention: Literal["box", "unfold", "flat", "none"]
    opset: int
    input_name: str
    output_name: str
    files: tuple[ModelFile, ...]
    vectors: Vectors | None
    relative_error_floor: float
    parity: Parity
    training: Json
    created_by: Json
    raw: Json
    gmac_per_part: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Of ``gmac_per_tile``; empty in a manifest written before it was counted."""
    cpu_precisions: tuple[CpuPrecision, ...] = ()

    def file(self, name: str) -> ModelFile | None:
        """The listed file of that name."""
        return next((file for file in self.files if file.name == name), None)


def read_manifest(path: Path) -> Manifest:
    """The manifest at ``path``, a file or the folder that holds it."""
    if path.is_dir():
        path = path / MANIFEST_NAME
    try:
        document = json.loads(path.read_text("utf-8"), parse_constant=_no_constant)
    except OSError as error:
        raise PoanError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise PoanError(f"{path}: expected JSON, got {error}") from None
    return parse_manifest(document, str(path))


def _no_constant(name: str) -> float:
    raise ValueError(f"{name}, which JSON does not have")


def parse_manifest(document: object, source: str = MANIFEST_NAME) -> Manifest:
    """The manifest in a decoded JSON value; ``source`` names it in errors."""
    root = _Fields(document, source, "")
    version = root.get("manifest_version", _integer(0))
    if version != VERSION:
        raise PoanError(f"{source}: manifest_version: expected {VERSION}, got {version}")
    network = root.object("network")
    network.get("config", _mapping)
    intensity = root.object("intensity")
    intensity.get("rule", _one_of("percentile-nonzero"))
    files = root.get("files", _list)
    if not files:
        raise PoanError(f"{source}: files: expected at least one file, got none")
    vectors = root.get("vectors", _anything)
    manifest = Manifest(
        name=root.get("name", _text),
        arch=network.get("arch", _text),
        parameters=network.get("parameters", _integer(0)),
        scale=root.get("scale", _integer(1)),
        contrast=root.get("contrast", _text),
        tile=root.get("tile", _integer(1)),
        batch=_batch(root.object("batch")),
        halo=root.get("halo", _integer(0)),
        overlap=root.get("overlap", _integer(0)),
        gmac_per_tile=root.get("gmac_per_tile", _number(0)),
        gmac_per_part=root.get("gmac_per_part", _numbers) if "gmac_per_part" in root.value else {},
        percentile=intensity.get("percentile", _percentile),
        grid=root.get("grid", _one_of("centre", "kspace")),  # type: ignore[arg-type]
        square_root=_square_root(root.object("square_root")),
        attention=root.object("attention").get("form", _one_of("box", "unfold", "flat", "none")),  # type: ignore[arg-type]
        opset=root.get("opset", _integer(1)),
        input_name=root.object("inputs").get("name", _text),
        output_name=root.object("outputs").get("name", _text),
        files=tuple(_file(_Fields(f, source, f"files[{i}]")) for i, f in enumerate(files)),
        vectors=None if vectors is None else _vectors(_Fields(vectors, source, "vectors")),
        relative_error_floor=root.get("relative_error_floor", _number(0)),
        parity=_parity(root.object("parity")),
        training=root.get("training", _mapping),
        created_by=root.get("created_by", _mapping),
        cpu_precisions=_cpu_precisions(root) if "cpu_precisions" in root.value else (),
        raw=cast(Json, document),
    )
    if 2 * manifest.halo + manifest.overlap >= manifest.tile:
        raise PoanError(
            f"{source}: tile: expected more than 2 * halo + overlap = "
            f"{2 * manifest.halo + manifest.overlap}, got {manifest.tile}"
        )
    return manifest


def _file(fields: "_Fields") -> ModelFile:
    return ModelFile(
        name=fields.get("name", _file_name),
        kind=fields.get("kind", _one_of("onnx", "plan")),  # type: ignore[arg-type]
        precision=fields.get("precision", _one_of(*PRECISIONS)),  # type: ignore[arg-type]
        islands=fields.get("islands", _texts),
        sha256=fields.get("sha256", _sha256),
        engine=_engine(fields.object("engine")) if "engine" in fields.value else None,
        parity=_parity(fields.object("parity")) if "parity" in fields.value else None,
    )


def _cpu_precisions(root: "_Fields") -> tuple[CpuPrecision, ...]:
    entries = root.get("cpu_precisions", _list)
    found = []
    for index, entry in enumerate(entries):
        fields = _Fields(entry, root.source, f"cpu_precisions[{index}]")
        found.append(
            CpuPrecision(
                engine=fields.get("engine", _one_of("openvino")),  # type: ignore[arg-type]
                version=fields.get("version", _text),
                precision=fields.get("precision", _one_of("bf16")),  # type: ignore[arg-type]
                file=fields.get("file", _file_name),
                float32_parts=fields.get("float32_parts", _pairs),
                parity=_parity(fields.object("parity")),
            )
        )
    return tuple(found)


def _engine(fields: "_Fields") -> Engine:
    return Engine(
        flavour=fields.get("flavour", _one_of("tensorrt", "tensorrt-rtx")),  # type: ignore[arg-type]
        version=fields.get("version", _text),
        compute_capabilities=fields.get("compute_capabilities", _texts),
        builder_flags=fields.get("builder_flags", _texts),
        source_onnx_sha256=fields.get("source_onnx_sha256", _sha256),
        profile=_batch(fields.object("profile")),
        report=fields.get("report", _mapping),
    )


def _parity(fields: "_Fields") -> Parity:
    checks = fields.get("checks", _list)
    for index, check in enumerate(checks):
        entry = _Fields(check, fields.source, f"{fields.where}.checks[{index}]")
        for key in ("file", "stage", "case", "metric", "reason"):
            entry.get(key, _text)
        for key in ("value", "tolerance"):
            entry.get(key, _number_or_null)
    verdict = fields.get("verdict", _one_of("pass", "fail", "pending"))
    return Parity(verdict=verdict, checks=tuple(checks))  # type: ignore[arg-type]


def _batch(fields: "_Fields") -> BatchRange:
    batch = BatchRange(
        min=fields.get("min", _integer(1)),
        opt=fields.get("opt", _integer(1)),
        max=fields.get("max", _integer(1)),
    )
    if not batch.min <= batch.opt <= batch.max:
        raise PoanError(f"{fields.source}: {fields.where}: expected min <= opt <= max, got {batch}")
    return batch


def _square_root(fields: "_Fields") -> Json:
    """A scheme other than ``none`` states its iterations and regularisation."""
    if fields.get("scheme", _text) != "none":
        fields.get("iterations", _integer(1))
        fields.get("eps", _number(0))
        fields.get("floor", _number(0))
        fields.get("condition_seen", _number_or_null)
    return cast(Json, fields.value)


def _vectors(fields: "_Fields") -> Vectors:
    return Vectors(name=fields.get("name", _file_name), sha256=fields.get("sha256", _sha256))


class _Fields:
    """An object of the JSON document, and where it stands, for errors."""

    def __init__(self, value: object, source: str, where: str) -> None:
        if not isinstance(value, dict):
            raise PoanError(f"{source}: {where or 'top level'}: expected an object, got {value!r}")
        self.value: dict[str, Any] = value
        self.source = source
        self.where = where

    def _path(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where else key

    def get(self, key: str, check: Callable[[Any], T]) -> T:
        """The field ``key``, passed through ``check``, which raises ValueError(expected)."""
        if key not in self.value:
            raise PoanError(f"{self.source}: {self._path(key)}: expected a value, got nothing")
        try:
            return check(self.value[key])
        except ValueError as error:
            got = json.dumps(self.value[key])
            raise PoanError(
                f"{self.source}: {self._path(key)}: expected {error}, got {got}"
            ) from None

    def object(self, key: str) -> "_Fields":
        return _Fields(self.get(key, _mapping), self.source, self._path(key))


def _anything(value: Any) -> Any:
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("a non-empty string")
    return value


def _file_name(value: Any) -> str:
    if not isinstance(value, str) or value in ("", ".", "..") or "/" in value or "\\" in value:
        raise ValueError("a plain file name")
    return value


def _sha256(value: Any) -> str:
    if not isinstance(value, str) or len(value) != 64 or not set(value) <= HEX:
        raise ValueError("64 lower-case hex digits")
    return value


def _mapping(value: Any) -> Json:
    if not isinstance(value, dict):
        raise ValueError("an object")
    return value


def _list(value: Any) -> Sequence[Any]:
    if not isinstance(value, list):
        raise ValueError("a list")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError("a list of strings")
    return tuple(value)


def _pairs(value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, list) or not all(len(_texts(item)) == 2 for item in value):
        raise ValueError("a list of pairs of strings")
    return tuple((item[0], item[1]) for item in value)


def _one_of(*options: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in options:
            raise ValueError(f"one of {', '.join(options)}")
        return value

    return check


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _integer(least: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        whole = isinstance(value, int) or (_is_number(value) and value.is_integer())
        if not whole or isinstance(value, bool) or value < least:
            raise ValueError(f"a whole number of at least {least}")
        return int(value)

    return check


def _number(least: float) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        if not _is_number(value) or value < least:
            raise ValueError(f"a number of at least {least:g}")
        return float(value)

    return check


def _numbers(value: Any) -> dict[str, float]:
    if not isinstance(value, dict) or not all(_is_number(n) and n >= 0 for n in value.values()):
        raise ValueError("an object of numbers of at least 0")
    return {name: float(number) for name, number in value.items()}


def _percentile(value: Any) -> float:
    if not _is_number(value) or not 0 < value <= 100:
        raise ValueError("a number above 0 and at most 100")
    return float(value)


def _number_or_null(value: Any) -> float | None:
    if value is not None and not _is_number(value):
        raise ValueError("a number or null")
    return None if value is None else float(value)
