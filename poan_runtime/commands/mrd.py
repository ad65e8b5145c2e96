"""`poan-mrd`: super-resolve images inline, at the scanner, over the ISMRMRD stream protocol."""

import argparse
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from poan_runtime.commands.arguments import Parser, add_engine_options, measured
from poan_runtime.commands.guard import guarded
from poan_runtime.commands.say import write_line
from poan_runtime.errors import PoanError

PORT = 9002
EPILOG = """\
examples:
  poan-mrd t2_x2                                listens on 127.0.0.1, port 9002
  poan-mrd t2_x2 --host 0.0.0.0 --unit 1800     one intensity unit for every series
  poan-mrd t2_x2 --wait-volume                  voxels of poan-run; answers when all is there
  poan-mrd t2_x2 --openrecon-label | base64 -w0

Images of one series share one intensity unit: that of its first image unless told otherwise.
Zero-filled images are super-resolved from the matrix that was acquired, as the measurement's
header says it, or with --wait-volume the spectrum of all; else as they come, and a line says so.
Phase and complex images pass through untouched. exit status: 0 done; 2 something you can mend.
Not a medical device."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(
        prog="poan-mrd",
        description="Serve inline super-resolution: images in, finer images out.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("model", help="a shipped model, a folder with manifest.json, or a model file")
    p.add_argument("--host", default="127.0.0.1", help="address to listen on")
    p.add_argument("--port", type=int, default=PORT)
    p.add_argument("--unit", type=float, help="what intensities are divided by")
    p.add_argument("--wait-volume", action="store_true", help="look at the whole series first")
    p.add_argument(
        "--position",
        choices=["centre", "corner"],
        default="centre",
        help="what the header's position is: the image's centre, or that of its first voxel",
    )
    p.add_argument(
        "--native",
        default="auto",
        choices=["auto", "on", "off"],
        help="super-resolve zero-filled images from the matrix that was acquired (auto: where the "
        "model was trained for scanners)",
    )
    p.add_argument(
        "--like-input",
        action="store_true",
        help="give exactly scale times the image's matrix, also from a smaller native one",
    )
    p.add_argument("--keep-measured", default="auto", type=measured, help="auto, on, off, 0 to 1")
    add_engine_options(p)
    p.add_argument("--openrecon-label", action="store_true", help="print the label as JSON")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `EPILOG` for the exit status."""
    p = parser()
    args = p.parse_args(argv)
    if args.unit is not None and not args.unit > 0:
        p.error("--unit: expected more than 0")
    return guarded("poan-mrd", lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Print the label, or serve."""
    if not args.openrecon_label:
        return _serve(args)
    from poan_runtime.services.mrd.label import openrecon_label

    print(openrecon_label(args.model, args.port))
    return 0


def _serve(args: argparse.Namespace) -> int:
    """Until SIGTERM or SIGINT."""
    from poan_runtime.engines.backend import EngineOptions
    from poan_runtime.network import Settings, load_network
    from poan_runtime.services.mrd.finer import Way
    from poan_runtime.services.mrd.serve import Server, warm_up

    options = EngineOptions(
        backend=args.backend, device=args.device, threads=args.threads, precision=args.precision
    )
    way = Way(
        settings=Settings(
            native=args.native, like_input=args.like_input, keep_measured=args.keep_measured
        ),
        unit=args.unit,
        wait_volume=args.wait_volume,
        position=args.position,
    )
    with load_network(args.model, options) as network:
        warm_up(network, way)
        try:
            server = Server(network, way, (args.host, args.port), say=_say)
        except OSError as error:
            raise PoanError(f"{args.host}:{args.port}: {error.strerror}") from None

        def stop(number: int, frame: FrameType | None) -> None:
            server.close()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        _say(f"listening on {args.host}:{server.port}, {network.model.manifest.name} is warm")
        server.run()
    return 0


def _say(line: str) -> None:
    write_line(f"poan-mrd: {line}", sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
