"""Which engine, form and precision is fastest on which kind of CPU?

    python -m benchmarks.isa mr_x2 mr_x3 mr_x4 ./mr_x2_flat --json benchmarks/results/isa.json

A CPU with more is made one with less: OpenVINO obeys ONEDNN_MAX_CPU_ISA; ONNX Runtime asks the
processor itself, so a copy of its library is made in which the instruction that tells whether the
system keeps the registers of AVX-512 answers no. Each engine is a process of its own with one
thread, and they take turns; a sample is processor time, which other work on the machine stretches
less than the clock's.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from poan_runtime.bench.machine import describe_machine
from poan_runtime.commands.guard import guarded
from poan_runtime.engines.backend import EngineOptions, open_backend
from poan_runtime.engines.precision import CAP, reduced_precision
from poan_runtime.errors import PoanError
from poan_runtime.models.find import find_model

KINDS = {"avx2": "AVX2", "avx2-vnni": "AVX2_VNNI", "avx512-vnni": "AVX512_CORE_VNNI", "all": "ALL"}
"""Kinds of CPU and what OpenVINO is told. ONNX Runtime is measured as avx2 and as all."""
ENGINES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
XGETBV = bytes.fromhex("0f01d0")
NO_AVX512 = bytes.fromhex("b00790")  # mov $7, %al: x87, SSE and AVX
TILES = 4


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One file in one engine, in one precision, on one kind of CPU."""

    model: str
    engine: str
    precision: str
    kind: str

    @property
    def key(self) -> dict[str, str]:
        return {**vars(self), "form": find_model(self.model).manifest.attention.form or ""}


def contenders(models: Sequence[str], kinds: Sequence[str]) -> list[Contender]:
    """Every combination that runs."""
    found = []
    for model in models:
        own = find_model(model).file.precision
        for kind in kinds:
            for engine, precision in (
                ("openvino", "fp32"),
                ("openvino", "bf16"),
                ("onnxruntime", "fp32"),
            ):
                fits = engine == "openvino" or kind in ("avx2", "all")
                if precision == "bf16":
                    fits = kind == "all" and own == "fp32"
                if fits:
                    named = precision if own == "fp32" else own
                    found.append(Contender(model=model, engine=engine, precision=named, kind=kind))
    return found


@contextmanager
def onnxruntime_of_avx2() -> Iterator[Path]:
    """A folder that holds a copy of ONNX Runtime that finds no AVX-512."""
    spec = find_spec("onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    with tempfile.TemporaryDirectory() as work:
        copy = Path(work) / "onnxruntime"
        shutil.copytree(Path(spec.origin).parent, copy)
        (library,) = copy.glob("capi/onnxruntime_pybind11_state*.so")
        content = bytearray(library.read_bytes())
        for place in instructions(library):
            assert content[place : place + 3] == XGETBV
            content[place : place + 3] = NO_AVX512
        library.write_bytes(content)
        yield Path(work)


def instructions(library: Path) -> list[int]:
    """Where in the file the instruction ``xgetbv`` stands; needs objdump."""
    command = ["objdump", "-d", "--no-show-raw-insn", str(library)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    heads = ["objdump", "-h", "-j", ".text", str(library)]
    fields = subprocess.run(heads, capture_output=True, text=True, check=True).stdout.split()
    row = fields[fields.index(".text") :]
    shift = int(row[4], 16) - int(row[2], 16)  # place in the file, less address
    lines = [line for line in text.splitlines() if line.rstrip().endswith("xgetbv")]
    if not lines:
        raise PoanError(f"{library}: no xgetbv in it")
    return [int(line.split(":")[0], 16) + shift for line in lines]


class Worker:
    """A process that has loaded one contender and runs some tiles when it is told to."""

    def __init__(self, one: Contender, copy: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", CAP: KINDS[one.kind]}
        folders = [str(copy)] if one.engine == "onnxruntime" and one.kind == "avx2" else []
        environment["PYTHONPATH"] = os.pathsep.join([*folders, *sys.path])
        command = [sys.executable, "-m", "benchmarks.isa", "--worker", json.dumps(vars(one))]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.samples: list[float] = []
        self.check = self._answer()

    def _answer(self) -> float:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise PoanError(f"{self.process.args}: ended")
        return float(line)

    def turn(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.samples.append(self._answer())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def worker(one: Contender) -> None:
    """Load, say a checksum of the answer, then milliseconds of processor time a tile, per line."""
    model = find_model(one.model)
    precision = "bf16" if one.precision == "bf16" else "fp32"
    options = EngineOptions(backend=one.engine, device="cpu", precision=precision, threads=1)
    if precision == "bf16" and reduced_precision(model, options).entry is None:
        raise PoanError(f"{one.model}: no bf16 here")
    backend = open_backend(model, options).backend
    tile = model.manifest.tile
    batch = np.random.default_rng(0).random((TILES, 1, tile, tile)).astype(np.float32)
    print(float(np.abs(backend.run(batch)).mean()), flush=True)
    for _ in sys.stdin:
        start = time.process_time()
        backend.run(batch)
        print(1e3 * (time.process_time() - start) / TILES, flush=True)


def measure(models: Sequence[str], rounds: int, kinds: Sequence[str]) -> list[dict[str, Any]]:
    """One row for each contender: all samples, their median."""
    rows = []
    with onnxruntime_of_avx2() as copy:
        for model in models:
            workers = {one: Worker(one, copy) for one in contenders([model], kinds)}
            for _ in range(rounds):
                for each in workers.values():
                    each.turn()
            for one, each in workers.items():
                each.close()
                samples = [round(ms, 3) for ms in each.samples]
                median = round(statistics.median(samples), 2)
                rows.append({**one.key, "ms": median, "mean": each.check, "samples": samples})
                print(f"{one.model:24} {one.kind:12} {one.engine:12} {one.precision:5} {median}")
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: one line for each file and kind of CPU, the fastest in bold."""
    columns = [
        ("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"),
        ("onnxruntime", "int8"), ("openvino", "int8"),
    ]  # fmt: skip
    heads = [*(f"{ENGINES[engine]} {precision}" for engine, precision in columns)]
    lines = [f"| model, form | CPU | {' | '.join(heads)} |", "|---" * (2 + len(heads)) + "|"]
    groups: dict[tuple[str, str, str], dict[tuple[str, str], float]] = {}
    for row in rows:
        name = Path(row["model"]).parent.name if row["model"].endswith(".onnx") else row["model"]
        group = groups.setdefault((Path(name).name, row["form"], row["kind"]), {})
        group[row["engine"], row["precision"]] = row["ms"]
    for (name, form, kind), found in groups.items():
        cells = [f"{found[c]:.1f}" if c in found else "" for c in columns]
        lines.append(f"| {name.removesuffix('_' + form)}, {form} | {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="benchmarks.isa", description=__doc__)
    p.add_argument("models", nargs="*")
    p.add_argument("--isa", action="append", choices=tuple(KINDS), help="default: each of them")
    p.add_argument("--rounds", type=int, default=15)
    p.add_argument("--json", type=Path)
    p.add_argument("--worker", help=argparse.SUPPRESS)
    args = p.parse_args(argv)
    if args.worker:
        worker(Contender(**json.loads(args.worker)))
        return 0

    def work() -> int:
        rows = measure(args.models, args.rounds, args.isa or tuple(KINDS))
        print(table(rows))
        if args.json:
            versions = {name: metadata.version(name) for name in ("openvino", "onnxruntime")}
            document = {"machine": describe_machine(), "versions": versions, "rows": rows}
            args.json.write_text(json.dumps(document, indent=1) + "\n")
        return 0

    return guarded("benchmarks.isa", work)


if __name__ == "__main__":
    raise SystemExit(main())
