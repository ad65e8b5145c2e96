"""poan-export: a checkpoint becomes ONNX files, vectors and a manifest, or exit status 3."""

import argparse
import ctypes
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from poan_export.triton import add_triton_options, serve
from poan_runtime.commands.arguments import Parser, add_quiet, natural, positive
from poan_runtime.commands.guard import guarded
from poan_runtime.commands.say import Voice, write_line
from poan_runtime.errors import PoanError
from poan_runtime.extras import needs

if TYPE_CHECKING:
    from poan_export.plans.make import EngineRequest
    from poan_export.request import Request
    from poan_export.rewrite.attention import Form

MODULES = ("torch", "scipy", "tensorboard", "tqdm", "ml_dtypes", "onnx", "onnxscript", "onnxslim")
"""What the extras ``train`` and ``export`` install beside the plain install."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Settings of glibc's mallopt, from malloc.h."""


def parser() -> argparse.ArgumentParser:
    p = Parser(
        prog="poan-export",
        description="Export a checkpoint to ONNX, prove that it still answers as PyTorch does, and "
        "write models, test vectors and a manifest. Exit status: 0, 2 for what you can mend, 3 if "
        "the network is below bicubic on its own validation, or below bicubic and sinc both on "
        "the tiles of --parity-data (--allow-worse exports it all the same), or the exported model "
        "is not within tolerance (then nothing is written), or an engine or an 8-bit model is not "
        "(then the rest is written).",
    )
    p.add_argument("--ckpt", type=Path, help="checkpoint of poan-train")
    p.add_argument("--out", type=Path, help="folder to write (default: the checkpoint's stem)")
    half = p.add_mutually_exclusive_group()
    half.add_argument("--fp16", action="store_const", dest="half", const="fp16")
    half.add_argument("--bf16", action="store_const", dest="half", const="bf16")
    p.add_argument(
        "--tile",
        type=tiles,
        default=(None,),
        help="LR voxels (default: 66; 33 for the small networks). With 66,60 a second one, in "
        "the folder tile60 within: poan-run takes its plan for scans where that moves fewer bytes",
    )
    p.add_argument("--halo", type=natural, help="LR voxels (default: 2; 0 for the small)")
    p.add_argument("--overlap", type=natural, help="LR voxels (default: 6; 4 for the small)")
    p.add_argument("--opset", type=int, choices=range(20, 24), help="default: 20; 22 for bf16")
    p.add_argument("--root", choices=("auto", "newton-schulz", "quintic"), default="auto")
    p.add_argument("--iterations", type=positive, help="instead of the measured choice")
    p.add_argument(
        "--attention",
        choices=("box", "unfold", "flat", "auto"),
        help="form of the patch attention; auto times all of them in ONNX Runtime here (default: "
        "box; flat where only CPUs are asked for and openvino is installed)",
    )
    p.add_argument(
        "--islands",
        type=lambda text: tuple(text.split(",")),
        help="modules that stay in float32 beside covariance and root, with commas (default: the "
        "attention's logits and softmax)",
    )
    p.add_argument(
        "--find-islands",
        action="store_true",
        help="search the smallest set of modules that must stay in float32, print and use it",
    )
    p.add_argument("--parity-data", type=Path, help="NIfTI file or folder for the gate's tiles")
    p.add_argument(
        "--allow-worse",
        action="store_true",
        help="export a network that is worse than bicubic and sinc all the same",
    )
    add_quiet(p)
    add_engine_options(p)
    add_triton_options(p)
    return p


def tiles(text: str) -> tuple[int, ...]:
    """
    >>> tiles("66"), tiles("66,60")
    ((66,), (66, 60))
    """
    found = tuple(map(positive, text.split(",")))
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"expected tiles that differ, got {text}")
    return found


def add_engine_options(p: argparse.ArgumentParser) -> None:
    g = p.add_argument_group("engines")
    g.add_argument(
        "--engine",
        choices=("auto", "tensorrt", "tensorrt-rtx", "none"),
        default="auto",
        help="tensorrt builds for the GPU at hand, tensorrt-rtx ahead of time for several; auto "
        "takes tensorrt with a GPU, else tensorrt-rtx if installed, else ONNX alone",
    )
    g.add_argument(
        "--sm",
        help="targets of tensorrt-rtx, as 86,89,120 (default: all from 80 on; 75 gets a plan of "
        "its own, if asked for)",
    )
    g.add_argument(
        "--vram", help="device memory, as 4GiB: take the largest tile and batch that fit"
    )
    g.add_argument(
        "--int8",
        action="append_const",
        dest="eight_bit",
        const="int8",
        help="quantise the residual blocks too, unless that loses 0.05 dB of PSNR or more",
    )
    g.add_argument(
        "--fp8", action="append_const", dest="eight_bit", const="fp8", help="the same in fp8 (e4m3)"
    )


def reuse_freed_memory() -> None:
    """Tell glibc to keep large freed blocks for the next tensor of that size.

    By default glibc gives each block back to the kernel, and the kernel clears its pages again:
    half of the processor time of a paper-size export. Other C libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for setting in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            mallopt(setting, 2**31 - 1)


def default_form(half: str | None, engine: "EngineRequest") -> "Form":
    """The form of attention where none was asked for.

    ``flat``, the fastest in OpenVINO, if OpenVINO is installed and only CPUs will run the export.
    """
    for_cpu = half is None and engine.engine == "none" and "fp8" not in engine.eight_bit
    return "flat" if for_cpu and importlib.util.find_spec("openvino") else "box"


def serve_export(args: argparse.Namespace) -> int:
    """Add an earlier export to a Triton repository; torch is not loaded for it."""
    try:
        serve(args, args.export)
    except PoanError as error:
        Voice("poan-export").error(str(error))
        return 2
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    p = parser()
    args = p.parse_args(argv)
    if args.export is not None and args.triton is not None and args.ckpt is None:
        return serve_export(args)
    if args.ckpt is None:
        p.error("expected --ckpt (or --export and --triton)")
    reuse_freed_memory()
    return guarded(p.prog, lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Export as the arguments say: 0, or 3 where a gate fails.

    With ``--quiet`` the lines of progress are shown only where something is amiss.
    """
    # Torch takes seconds to import: --help and a mistyped option do not wait for it.
    with needs(MODULES, "train", "export"):
        from poan_export.export import export, to_stderr
        from poan_export.gate.parity import ParityFailure
        from poan_export.gate.quality import WorseThanInterpolation
        from poan_export.plans.make import finish
    unsaid: list[str] = []
    say = unsaid.append if args.quiet else to_stderr
    try:
        request = request_of(args)
        folder = export(request, say)
        good = finish(folder, request.engine, say)
        if args.triton is not None:
            serve(args, folder)
    except (ParityFailure, WorseThanInterpolation) as failure:
        to_stderr(str(failure))
        return 3
    if not good:
        for line in unsaid:
            to_stderr(line)
    if not args.quiet:
        write_line(str(folder), sys.stdout)
    return 0 if good else 3


def request_of(args: argparse.Namespace) -> "Request":
    """What the arguments ask for."""
    from poan_export.plans.make import EngineRequest
    from poan_export.plans.vram import parse_bytes
    from poan_export.request import Request

    if args.half is None and (args.find_islands or args.islands):
        raise PoanError("--islands and --find-islands need --fp16 or --bf16")
    engine = EngineRequest(engine=args.engine, sm=args.sm, eight_bit=tuple(args.eight_bit or ()))
    return Request(
        ckpt=args.ckpt,
        out=args.out,
        half=args.half,
        tile=args.tile[0],
        other_tiles=args.tile[1:],
        halo=args.halo,
        overlap=args.overlap,
        opset=args.opset,
        root=None if args.root == "auto" else args.root,
        iterations=args.iterations,
        attention=args.attention or default_form(args.half, engine),
        parity_data=args.parity_data,
        islands=args.islands,
        find_islands=args.find_islands,
        engine=engine,
        allow_worse=args.allow_worse,
        vram=None if args.vram is None else parse_bytes(args.vram),
    )


if __name__ == "__main__":
    raise SystemExit(main())
