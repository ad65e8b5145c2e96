"""`poan-doctor`: what this machine can run, what is missing, and the command that mends it."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from poan_runtime.commands.arguments import Parser, device, positive
from poan_runtime.commands.guard import guarded
from poan_runtime.commands.say import write_line

CAP = "ONEDNN_MAX_CPU_ISA"
CAPS = {"avx2": "AVX2", "avx2-vnni": "AVX2_VNNI", "avx512": "AVX512_CORE"}
"""What `poan_runtime.engines.precision` and OpenVINO read there."""
EPILOG = """\
exit status: 0 every shipped model runs; 1 some do not (the lines say what mends it)."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(
        prog="poan-doctor",
        description="Look at engines, libraries and hardware, and time a few tiles of each model.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("models", nargs="*", metavar="MODEL", help="folders in place of what is shipped")
    p.add_argument(
        "--compare",
        action="store_true",
        help="time every engine, precision and 8-bit file for CPUs",
    )
    p.add_argument(
        "--isa",
        choices=CAPS,
        help="look how a CPU with no more than this would do: OpenVINO obeys, ONNX Runtime cannot",
    )
    p.add_argument("--json", action="store_true", help="for other programs")
    p.add_argument("--no-timing", action="store_true", help="load models, run no tile")
    p.add_argument("--backend", default="auto", help="auto, onnxruntime, openvino, ...")
    p.add_argument("--device", default="auto", type=device, help="auto, cpu, cuda or cuda:N")
    p.add_argument("--threads", type=positive, help="threads of the inference engine")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `EPILOG` for the exit status."""
    args = parser().parse_args(argv)
    return guarded("poan-doctor", lambda: run(args))


def folder_of(name: str) -> Path:
    """The folder of a model: a shipped one by its name, another by its path."""
    from poan_runtime.models.find import find_model

    return find_model(name).path.parent


def run(args: argparse.Namespace) -> int:
    """Look and print."""
    if args.isa is not None:
        os.environ[CAP] = CAPS[args.isa]
    from poan_runtime.engines.backend import EngineOptions
    from poan_runtime.report import doctor

    options = EngineOptions(backend=args.backend, device=args.device, threads=args.threads)
    folders = [folder_of(name) for name in args.models] or None
    found = doctor.examine(
        options, timed=not args.no_timing, compared=args.compare, folders=folders
    )
    if args.json:
        print(json.dumps(doctor.as_json(found), indent=1))
        return 0 if found.well else 1
    lines = doctor.as_lines(found)
    if args.isa is not None:
        lines.insert(2, f"capped    OpenVINO to {args.isa}; ONNX Runtime asks the CPU itself")
    for line in lines:
        write_line(line, sys.stdout)
    return 0 if found.well else 1


if __name__ == "__main__":
    raise SystemExit(main())
