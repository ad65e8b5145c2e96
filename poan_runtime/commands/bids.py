"""`poan-bids`: super-resolve a BIDS dataset, as a BIDS-App."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from poan_runtime.commands.arguments import (
    Parser,
    add_engine_options,
    add_quiet,
    axis,
    positive,
)
from poan_runtime.commands.guard import guarded
from poan_runtime.commands.server_options import add_server_options

EPILOG = """\
examples:
  poan-bids raw/ derivatives/poan participant                every scan that is not done yet
  poan-bids raw/ out/ participant --participant-label 01 02 --n-procs 4 --mem 16G
  poan-bids raw/ out/ participant --slurm --partition cpu --tasks 50
  poan-bids raw/ out/ group                                  out/poan-report.html

T1w, T2w, PDw, FLAIR and inplaneT2 are taken; --model T1w=NAME names a model for a suffix. A scan
whose result is there, made from the same file with the same model, is not made again: after a
kill, type the command again.
exit status: 0 done; 1 some scans failed (listed at the end); 2 something you can mend.
Not a medical device."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(
        prog="poan-bids",
        description="Super-resolve the anatomical scans of a BIDS dataset into a derivative.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("bids_dir", type=Path, help="the raw dataset")
    p.add_argument("output_dir", type=Path, help="the derivative, made if it is not there")
    p.add_argument("level", choices=["participant", "group"], help="scans, or the cohort's report")
    add_quiet(p)
    g = p.add_argument_group("which scans")
    g.add_argument("--participant-label", "--participant_label", nargs="+", default=[])
    g.add_argument("--session-label", "--session_label", nargs="+", default=[])
    g.add_argument("--bids-filter-file", type=Path, metavar="JSON", help="entities by suffix")
    g.add_argument("--share", type=_share, metavar="K/N", help="the K-th of N equal shares")
    g.add_argument("--dry-run", action="store_true", help="list what would be made; make nothing")
    _add_how(p)
    _add_slurm(p)
    add_server_options(p)
    return p


def _add_how(p: argparse.ArgumentParser) -> None:
    g = p.add_argument_group("how to run")
    g.add_argument("--scale", type=int, choices=[2, 3, 4], default=2, help="of the shipped models")
    g.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="[SUFFIX=]MODEL",
        help="a shipped model, folder or file for one suffix, or for all",
    )
    g.add_argument("--n-procs", "--n_procs", type=positive, default=1, help="processes")
    g.add_argument("--mem", type=_bytes, metavar="SIZE", help="of all processes together, as 16G")
    add_engine_options(g, threads="of each process (default: its share of cores)")
    g.add_argument("--axis", type=axis, help="slice axis: 0, 1, 2, sagittal, coronal or axial")
    g.add_argument("--self-ensemble", action="store_true", help="mean over 8 flips and rotations")


def _add_slurm(p: argparse.ArgumentParser) -> None:
    g = p.add_argument_group("Slurm")
    g.add_argument("--slurm", action="store_true", help="submit an array job in place of running")
    g.add_argument("--tasks", type=positive, default=8, help="tasks of the array")
    g.add_argument("--partition")
    g.add_argument("--time", help="limit of a task, as sbatch takes it")
    g.add_argument("--retries", type=positive, default=3, help="restarts of a task that was killed")
    g.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="passed on to sbatch, as --sbatch=--account=mri",
    )


def _share(text: str) -> tuple[int, int]:
    """``K/N`` with 1 <= K <= N."""
    part, _, whole = text.partition("/")
    if part.isdecimal() and whole.isdecimal() and 1 <= int(part) <= int(whole):
        return int(part), int(whole)
    raise argparse.ArgumentTypeError(f"expected K/N with 1 <= K <= N, got {text}")


def _bytes(text: str) -> int:
    """A size as 900M, 16G, 16GiB or plain bytes."""
    number = text.upper().removesuffix("B").removesuffix("I")
    units = {"K": 10, "M": 20, "G": 30, "T": 40}
    shift = units.get(number[-1:], 0)
    try:
        size = float(number.rstrip("KMGT")) * 2**shift
    except ValueError:
        size = 0.0
    if size < 1:
        raise argparse.ArgumentTypeError(f"expected a size as 16G, got {text}")
    return int(size)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `EPILOG` for the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    args = parser().parse_args(argv)
    return guarded("poan-bids", lambda: run(args, argv))


def run(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Do what the arguments ask for."""
    from poan_runtime.commands import run_cohort as command

    if args.level == "group":
        return command.group(args)
    if args.slurm:
        return command.submit(args, argv)
    return command.participant(args)


if __name__ == "__main__":
    raise SystemExit(main())
