"""`manifest.json`: what the exporter promises about the models beside it.

The dataclasses of this file are the description: the exporter fills and writes them, the reader
makes them from JSON, and ``python -m poan_runtime.models.manifest`` prints their JSON Schema,
which is kept in `manifest.schema.json` for other programs.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from poan_runtime.errors import PoanError
from poan_runtime.geometry import Grid
from poan_runtime.models.fields import (
    Amount,
    FileName,
    Json,
    MeasuredShare,
    Natural,
    Percentile,
    Positive,
    Record,
    Rule,
    Sha256,
    Text,
    read,
    says,
    schema,
)

VERSION: Literal[1] = 1
MANIFEST_NAME = "manifest.json"
SCHEMA_NAME = "manifest.schema.json"
Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
Verdict = Literal["pass", "fail", "pending"]


@dataclass(frozen=True, kw_only=True)
class BatchRange(Record):
    """Batch sizes that a model accepts, and the one it is tuned for; min <= opt <= max."""

    min: Positive
    opt: Positive
    max: Positive

    def check(self) -> str | None:
        if self.min <= self.opt <= self.max:
            return None
        return f"expected min <= opt <= max, got {self.min}, {self.opt}, {self.max}"


@dataclass(frozen=True, kw_only=True)
class Check(Record):
    """One comparison of a file with the reference, or a loss that was measured."""

    file: Text
    stage: Text
    case: Text
    metric: Text
    value: float | None = field(metadata=says("null where it is not finite"))
    tolerance: float | None = field(
        metadata=says("the largest value that passes; null where none is judged")
    )
    reason: Text

    @property
    def passed(self) -> bool:
        """Whether the value is within the tolerance, or there is none."""
        if self.tolerance is None:
            return True
        return self.value is not None and self.value <= self.tolerance


@dataclass(frozen=True, kw_only=True)
class Parity(Record):
    """Does the file answer as PyTorch does? ``pending`` where it has not been run yet."""

    verdict: Verdict
    checks: tuple[Check, ...]

    @classmethod
    def of(cls, checks: "tuple[Check, ...] | list[Check]") -> "Parity":
        """The verdict that follows from checks."""
        passed = all(check.passed for check in checks)
        return cls(verdict="pass" if passed else "fail", checks=tuple(checks))


PENDING = Parity(verdict="pending", checks=())


@dataclass(frozen=True, kw_only=True)
class Engine(Record):
    """How a plan was built."""

    flavour: Literal["tensorrt", "tensorrt-rtx"]
    version: Text
    compute_capabilities: tuple[str, ...]
    builder_flags: tuple[str, ...]
    source_onnx_sha256: Sha256
    profile: BatchRange
    report: Json
    gpu: Json | None = None
    """Of `tensorrt`, which ties a plan to it: name, sms, memory_bytes, driver and runtime."""


@dataclass(frozen=True, kw_only=True)
class ModelFile(Record):
    """One model file; ``islands`` names the parts kept in fp32."""

    name: FileName
    kind: Literal["onnx", "plan"]
    precision: Precision
    islands: tuple[str, ...]
    sha256: Sha256
    engine: Engine | None = None
    parity: Parity | None = None


@dataclass(frozen=True, kw_only=True)
class CpuPrecision(Record):
    """What a file loses where ``engine`` runs it on a CPU in less than its own precision.

    ``float32_parts``, each from one tensor to another, stay in float32 all the same: covariances
    and their roots. The verdict holds for one release of the engine, the first two numbers of
    ``version``.
    """

    engine: Literal["openvino"]
    version: Text
    precision: Literal["bf16"]
    file: FileName
    float32_parts: tuple[tuple[str, str], ...] = field(
        metadata=says("first and last tensor of each")
    )
    parity: Parity


@dataclass(frozen=True, kw_only=True)
class DeviceVerdict(Record):
    """What ``--verify`` found on one GPU: it holds for this file, engine, device and release.

    ``device`` is the GPU's name; of ``version`` the first two numbers count.
    """

    file: FileName
    engine: Text
    device: Text
    version: Text
    parity: Parity


@dataclass(frozen=True, kw_only=True)
class Vectors(Record):
    """Stored test vectors: ``input_<case>`` and ``output_<case>``."""

    name: FileName
    sha256: Sha256


@dataclass(frozen=True, kw_only=True)
class NetworkFacts(Record):
    """The trained network."""

    arch: Text
    parameters: Natural
    config: Json


@dataclass(frozen=True, kw_only=True)
class Intensity(Record):
    """How the intensity unit of a volume is found."""

    rule: Literal["percentile-nonzero"]
    percentile: Percentile


@dataclass(frozen=True, kw_only=True)
class NoRoot(Record):
    """The network takes no matrix root."""

    scheme: Literal["none"] = field(metadata=says("the network takes no matrix root"))


Scheme = Annotated[
    str,
    Rule(
        "a non-empty string",
        lambda value: isinstance(value, str) and value not in ("", "none"),
        {"type": "string", "minLength": 1, "not": {"const": "none"}},
    ),
]


@dataclass(frozen=True, kw_only=True)
class MatrixRoot(Record):
    """The iteration that stands for the square root of the covariances."""

    scheme: Scheme
    iterations: Positive
    eps: Amount
    floor: Amount
    condition_seen: float | None = field(
        metadata=says("largest condition number on the gate's real tiles")
    )


@dataclass(frozen=True, kw_only=True)
class Attention(Record):
    """The form in which the patch attention was exported."""

    form: Literal["box", "unfold", "flat", "none"]


@dataclass(frozen=True, kw_only=True)
class Port(Record):
    """An input or output of the graphs."""

    name: Text


@dataclass(frozen=True, kw_only=True)
class OtherTile(Record):
    """The same network exported for another tile: a whole export, in a folder beside this file."""

    folder: FileName
    tile: Positive


@dataclass(frozen=True, kw_only=True)
class Manifest(Record):
    """What the exporter promises about the models beside it. Lengths are LR voxels.

    Three rules span several fields and are checked by the reader alone: min <= opt <= max in
    each batch range, 2 * halo + overlap < tile, and no two tiles are alike.
    """

    manifest_version: Literal[1]
    name: Text
    network: NetworkFacts
    scale: Positive
    contrast: Text
    tile: Positive
    batch: BatchRange
    halo: Natural = field(metadata=says("border of each tile that is thrown away"))
    overlap: Natural = field(metadata=says("what neighbours share after the halo is gone, blended"))
    gmac_per_tile: Amount
    gmac_per_part: Mapping[str, Amount] = field(
        metadata=says("of gmac_per_tile, by part of the network"), default_factory=dict
    )
    intensity: Intensity
    grid: Grid
    square_root: NoRoot | MatrixRoot
    attention: Attention
    opset: Positive
    inputs: Port
    outputs: Port
    files: tuple[ModelFile, ...] = field(metadata={"schema": {"minItems": 1}})
    vectors: Vectors | None
    relative_error_floor: Amount
    parity: Parity
    cpu_precisions: tuple[CpuPrecision, ...] = field(
        metadata=says("what files lose in less than their own precision on a CPU"), default=()
    )
    device_verdicts: tuple[DeviceVerdict, ...] = field(
        metadata=says("what --verify found on GPUs"), default=()
    )
    other_tiles: tuple[OtherTile, ...] = field(
        metadata=says("exports for other tiles, whose plans some matrices take"), default=()
    )
    training: Json
    created_by: Json
    degradation: Json = field(
        metadata=says("the LR that the network was trained for"), default_factory=dict
    )
    gains: Mapping[str, float] = field(
        metadata=says("dB of PSNR over the better of bicubic and sinc, by kind of LR"),
        default_factory=dict,
    )
    keep_measured: MeasuredShare | None = field(
        metadata=says("whether, or which share of, the band that the scanner measured is put back"),
        default=None,
    )
    air_k: Amount | None = field(
        metadata=says(
            "tiles without a voxel above the air's median + air_k sigma are interpolated; "
            "without it they run"
        ),
        default=None,
    )
    data_licence: Text | None = field(
        metadata=says("licence of the scans of the training"), default=None
    )

    def check(self) -> str | None:
        if not self.files:
            return "files: expected at least one file, got none"
        needed = 2 * self.halo + self.overlap
        if needed >= self.tile:
            return f"tile: expected more than 2 * halo + overlap = {needed}, got {self.tile}"
        tiles = [self.tile, *(other.tile for other in self.other_tiles)]
        if len(set(tiles)) < len(tiles):
            return f"other_tiles: expected tiles that differ, got {', '.join(map(str, tiles))}"
        return None

    @property
    def arch(self) -> str:
        """The architecture's name."""
        return self.network.arch

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return self.network.parameters

    @property
    def percentile(self) -> float:
        """Percentile of the non-zero magnitudes that is the intensity unit."""
        return self.intensity.percentile

    @property
    def input_name(self) -> str:
        """Name of the graphs' input."""
        return self.inputs.name

    @property
    def output_name(self) -> str:
        """Name of the graphs' output."""
        return self.outputs.name

    def file(self, name: str) -> ModelFile | None:
        """The listed file of that name."""
        return next((file for file in self.files if file.name == name), None)

    def with_file(self, changed: ModelFile) -> "Manifest":
        """A copy in which ``changed`` takes the place of the file of its name."""
        files = tuple(changed if file.name == changed.name else file for file in self.files)
        return replace(self, files=files)

    def text(self) -> str:
        """The document to write."""
        return json.dumps(self.json(), indent=1, allow_nan=False) + "\n"


def read_manifest(path: Path) -> Manifest:
    """The manifest at ``path``, a file or the folder that holds it.

    Raises PoanError naming the file and the field where it is no manifest.
    """
    if path.is_dir():
        path = path / MANIFEST_NAME
    try:
        document = json.loads(path.read_text("utf-8"), parse_constant=_no_constant)
    except OSError as error:
        raise PoanError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise PoanError(f"{path}: expected JSON, got {error}") from None
    return parse_manifest(document, str(path))


def parse_manifest(document: object, source: str = MANIFEST_NAME) -> Manifest:
    """The manifest in a decoded JSON value; ``source`` names it in errors."""
    return read(Manifest, document, source)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name}, which JSON does not have")


def schema_text() -> str:
    """`manifest.schema.json`."""
    made = schema(
        Manifest, "poan manifest, version 1", "https://poan.invalid/manifest-1.schema.json"
    )
    return json.dumps(made, indent=1) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
