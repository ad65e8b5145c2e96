"""`poan-doctor`: what this machine can run, what is missing, and the command that mends it."""

import argparse
import json
from collections.abc import Sequence

from poan_runtime.commands.arguments import Parser, device, positive
from poan_runtime.commands.guard import guarded

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


def run(args: argparse.Namespace) -> int:
    """Look and print."""
    from poan_runtime.engines.backend import EngineOptions
    from poan_runtime.report import doctor

    options = EngineOptions(backend=args.backend, device=args.device, threads=args.threads)
    found = doctor.examine(options, timed=not args.no_timing)
    lines = [json.dumps(doctor.as_json(found), indent=1)] if args.json else doctor.as_lines(found)
    print("\n".join(lines))
    return 0 if found.well else 1


if __name__ == "__main__":
    raise SystemExit(main())
