"""`poan-bench`: parse, measure, print."""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from poan_runtime.commands.arguments import Parser, device, natural, positive
from poan_runtime.commands.guard import guarded
from poan_runtime.commands.say import write_line
from poan_runtime.errors import PoanError

EPILOG = """\
examples:
  poan-bench t2_x2
  poan-bench t2_x2@onnxruntime t2_x2@openvino --iterations 100 --json out.json --plot out.png
  poan-bench t2_x4/engine.plan t2_x4/model.fp16.onnx --device cuda

The models take turns, so that what slows the machine slows all of them."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(
        prog="poan-bench",
        description="Latency, throughput, cold start and memory of models, side by side.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="as for poan-run; MODEL@BACKEND, MODEL@fp32 and MODEL@bf16 ask for one",
    )
    p.add_argument("--batch", type=positive, help="tiles per batch (default: the manifest's)")
    p.add_argument("--iterations", type=positive, default=50, help="batches that count")
    p.add_argument("--warmup", type=natural, default=5, help="batches before, kept apart")
    p.add_argument("--duration", type=number(0), default=0.0, metavar="S", help="at least so long")
    p.add_argument(
        "--warmup-ms", type=number(0), default=0.0, metavar="MS", help="at least so long"
    )
    p.add_argument(
        "--percentile",
        type=number(0, 100),
        action="append",
        default=[],
        metavar="P",
        help="such as 99.9",
    )
    p.add_argument(
        "--bandwidth",
        type=number(1),
        metavar="GB/S",
        help="of the GPU's memory: a plan's share of it",
    )
    p.add_argument("--layers", action="store_true", help="what each layer of a plan takes")
    p.add_argument(
        "--timeline", type=Path, metavar="JSON", help="when each batch ran, for ui.perfetto.dev"
    )
    p.add_argument("--scan", type=Path, help="scan for the whole-scan figure (default: made up)")
    p.add_argument("--scan-iterations", type=natural, default=1, help="0 leaves it out")
    p.add_argument("--no-cold", action="store_true", help="leave the cold starts out")
    p.add_argument("--device", default="auto", type=device, help="auto, cpu, cuda or cuda:N")
    p.add_argument("--threads", type=positive, help="threads of the inference engine")
    p.add_argument(
        "--json", type=Path, help="everything, raw samples included; replaces an earlier file"
    )
    p.add_argument(
        "--plot", type=Path, metavar="PNG", help="distribution of the latency; as --json"
    )
    return p


def number(least: float, most: float = math.inf) -> Callable[[str], float]:
    """What reads a number from ``least`` to ``most``."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most or value == math.inf:
            limits = f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
            raise argparse.ArgumentTypeError(f"expected a number {limits}, got {text}")
        return value

    return read


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: 0, or 2 for what the user can mend."""
    p = parser()
    args = p.parse_args(argv)

    def work() -> int:
        run(args)
        return 0

    return guarded(p.prog, work)


def run(args: argparse.Namespace) -> None:
    """Measure, then write and print what was found."""
    from poan_runtime.bench.measure import Request, bench
    from poan_runtime.bench.table import lines_of

    for path in (args.json, args.plot):
        if path is not None and not path.parent.is_dir():
            raise PoanError(f"{path}: there is no folder {path.parent}")
    request = Request(
        models=tuple(args.models),
        batch=args.batch,
        iterations=args.iterations,
        warmup=args.warmup,
        duration_s=args.duration,
        warmup_ms=args.warmup_ms,
        percentiles=tuple(args.percentile),
        bandwidth_gb_s=args.bandwidth,
        layers=args.layers,
        timeline=args.timeline,
        scan=args.scan,
        scan_iterations=args.scan_iterations,
        cold=not args.no_cold,
        device=args.device,
        threads=args.threads,
    )
    document = bench(request)
    if args.json is not None:
        from poan_runtime.files import WholeFile

        with WholeFile(args.json) as file:
            file.write(json.dumps(document, indent=1).encode() + b"\n")
    if args.plot is not None:
        from poan_runtime.bench.picture import write_plot

        write_plot(args.plot, document)
    for line in lines_of(document):
        write_line(line, sys.stdout)


if __name__ == "__main__":
    raise SystemExit(main())
