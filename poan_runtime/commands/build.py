"""`poan-build`: TensorRT plans from the ONNX file of an exported model, on this machine."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from poan_runtime.commands.arguments import Parser, positive
from poan_runtime.commands.guard import guarded
from poan_runtime.commands.say import Voice

EPILOG = """\
examples:
  poan-build ./t2_x4/                      with what is installed, for the GPU at hand
  poan-build ./t2_x4/ --engine tensorrt-rtx --sm 86,89     for RTX 30 and 40, without a GPU

The plan gets a name of its own beside the model and an entry in its manifest; on the GPU that it
is for it is compared with PyTorch at once. Needs no torch.

exit status: 0 done; 2 something you can mend; 3 a plan failed its parity gate."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(
        prog="poan-build",
        description="Build TensorRT plans of an exported model, list and verify them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("folder", type=Path, help="a folder with manifest.json and ONNX files")
    p.add_argument(
        "--engine",
        default="auto",
        help="auto, tensorrt (for the GPU at hand) or tensorrt-rtx (for RTX GPUs, ahead of time)",
    )
    p.add_argument("--source", metavar="FILE", help="ONNX file (default: the half-precision one)")
    p.add_argument("--sm", help="targets of tensorrt-rtx, such as 86,89 (default: all)")
    p.add_argument("--batch", type=positive, help="tiles at once (default: the manifest's)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `EPILOG` for the exit status."""
    p = parser()
    args = p.parse_args(argv)
    return guarded(p.prog, lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Build and judge."""
    from poan_runtime.engines.tensorrt.build.add import PlanRequest, add_plans

    request = PlanRequest(
        folder=args.folder,
        engine=args.engine,
        source=args.source,
        sm=args.sm,
        batch=args.batch,
    )
    return 3 if add_plans(request, Voice("poan-build").say) else 0


if __name__ == "__main__":
    raise SystemExit(main())
