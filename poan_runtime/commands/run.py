"""`poan-run`: super-resolve scans. Nothing heavy is imported until there is work to do."""

import argparse
from collections.abc import Sequence

from poan_runtime.commands.arguments import (
    Parser,
    add_engine_options,
    add_loudness,
    axis,
    measured,
    natural,
    positive,
)
from poan_runtime.commands.guard import guarded
from poan_runtime.commands.say import Voice, level_of
from poan_runtime.commands.server_options import add_server_options

EPILOG = """\
examples:
  poan-run auto scan.nii.gz                   the model for the scan's contrast; auto_x3, auto_x4
  poan-run t2_x2 scan.nii.gz                  writes scan_desc-sr.nii.gz beside it
  poan-run t2_x2 scan.nii.gz -o fine.nii.gz --preview fine.png --report fine.json
  poan-run ./my_x4 a.nii.gz b.nii.gz -o out/  a model of one's own is a path, with a separator
  poan-run t2_x2 scans/ -o out/ --skip-existing     goes on after a kill
  poan-run --explain t2_x2 scan.nii.gz        the plan and what it will cost; times a few tiles
  poan-run t2_x2 DICOM_FOLDER -o OUT          a derived series; -o fine.nii.gz for NIfTI
  poan-run --list-series DICOM_FOLDER
  poan-run --list
  poan-run --verify t2_x2/engine.plan         compares it with PyTorch on this machine

exit status: 0 done; 2 something you can mend (one line says what), and then no output
exists for that scan, unless the line says so; 3 --verify found the model beyond its
tolerance. Several scans are tried one after the other.
Not a medical device."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(
        prog="poan-run",
        description="Super-resolve MR scans in-plane, tile by tile, in bounded memory.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "model",
        nargs="?",
        help="a shipped model (a bare name), a folder (./NAME) or file with its manifest, or "
        "kserve://HOST/MODEL",
    )
    p.add_argument(
        "scans",
        nargs="*",
        metavar="scan",
        help="NIfTI, MGH or Analyze files, folders of NIfTI files, or DICOM folders",
    )
    p.add_argument("-o", "--output", help="output file; a folder for several scans")
    p.add_argument(
        "--verify",
        action="store_true",
        help="run the model's stored test vectors here, write the verdict into its manifest",
    )
    p.add_argument(
        "--explain",
        action="store_true",
        help="show engine, tiles, work, predicted time and memory; write no scan",
    )
    p.add_argument("--list", action="store_true", help="list the shipped models")
    p.add_argument("--preview", metavar="PNG", help="LR, bicubic, sinc, SR (or a folder)")
    p.add_argument(
        "--report",
        metavar="FILE",
        help="timings, backend, hashes, warnings as JSON; out.html is a page to look at",
    )
    p.add_argument(
        "--changed-map",
        metavar="NIFTI",
        help="write where, and by how much, the network changed what was measured (or a folder)",
    )
    p.add_argument(
        "--uncertainty",
        metavar="NIFTI",
        help="write the standard deviation over 8 flips and rotations, whose mean is then the "
        "result, as with --self-ensemble (or a folder)",
    )
    p.add_argument("--dtype", help="voxel type of the output (default: as the input)")
    p.add_argument("--axis", type=axis, help="slice axis: 0, 1, 2, sagittal, coronal or axial")
    add_loudness(p)
    _add_output_options(p)
    _add_run_options(p)
    _add_dicom_options(p)
    _add_trust_options(p)
    add_server_options(p)
    return p


def _add_output_options(p: argparse.ArgumentParser) -> None:
    g = p.add_argument_group("outputs that are there already, and what they hold")
    there = g.add_mutually_exclusive_group()
    there.add_argument("--overwrite", action="store_true", help="replace what is there")
    there.add_argument(
        "--skip-existing", action="store_true", help="leave scans alone whose output is there"
    )
    g.add_argument(
        "--saturate",
        action="store_true",
        help="write --dtype though over 1 %% does not fit into it",
    )
    g.add_argument(
        "--keep-negative",
        action="store_true",
        help="keep voxels below zero where the scan has none (default: they become 0)",
    )
    g.add_argument(
        "--labels", action="store_true", help="interpolate what looks like a label map all the same"
    )


def _add_run_options(p: argparse.ArgumentParser) -> None:
    g = p.add_argument_group("how to run")
    g.add_argument("--self-ensemble", action="store_true", help="mean over 8 flips and rotations")
    g.add_argument(
        "--native",
        default="auto",
        choices=["auto", "on", "off"],
        help="super-resolve a zero-filled scan from the matrix that was measured (auto: where the "
        "model was trained for scanners, with the answer on the stored matrix as a second opinion)",
    )
    g.add_argument(
        "--like-input",
        action="store_true",
        help="give exactly scale times the input's matrix, also from a smaller native one",
    )
    g.add_argument(
        "--keep-measured",
        default="auto",
        type=measured,
        help="put the measured part of k-space back into the result: on, off, a share from 0 to 1 "
        "(auto: as the model says)",
    )
    g.add_argument(
        "--no-skip",
        action="store_true",
        help="run constant tiles and air like all others",
    )
    add_engine_options(g)
    g.add_argument("--batch", type=positive, help="tiles per call")
    g.add_argument("--halo", type=natural, help="border of each tile thrown away, LR voxels")
    g.add_argument("--overlap", type=natural, help="what neighbours blend, LR voxels; exactly so")


def _add_dicom_options(p: argparse.ArgumentParser) -> None:
    g = p.add_argument_group("DICOM")
    g.add_argument("--series", help="which series of a folder; --list-series shows their names")
    g.add_argument("--list-series", action="store_true", help="list the series of the folders")
    g.add_argument("--uid-root", metavar="UID", help="root of new UIDs, which then repeat")
    g.add_argument("--uid-seed", metavar="TEXT", help="new UIDs follow from it and the source's")
    g.add_argument("--nifti", metavar="FILE", help="NIfTI too, beside the derived series")
    g.add_argument(
        "--enhanced", action="store_true", help="multi-frame output of an Enhanced series"
    )
    g.add_argument("--burn-in", action="store_true", help="write the notice into the pixels too")


def _add_trust_options(p: argparse.ArgumentParser) -> None:
    g = p.add_argument_group("a bare .onnx without manifest.json")
    g.add_argument("--trust", action="store_true", help="run it all the same; needs these facts:")
    g.add_argument("--scale", type=positive, help="HR voxels per LR voxel")
    g.add_argument("--tile", type=positive, help="LR voxels along a tile")
    g.add_argument("--grid", default="centre", choices=["centre", "kspace"], help="half-voxel rule")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `EPILOG` for the exit status."""
    p = parser()
    args = p.parse_args(argv)
    check(p, args)
    return guarded(p.prog, lambda: run(args))


def check(p: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse what does not go together, before anything is loaded."""
    for word in (args.model, *args.scans, args.output, args.report, args.preview):
        if word == "":
            p.error("an empty name stands where a model, a scan or a file is expected")
    if args.list and args.model:
        p.error(f"--list: expected no argument, got {args.model}")
    if args.list_series and not args.model:
        p.error("--list-series: expected DICOM folders or files")
    if args.verify and (args.scans or not args.model):
        p.error("--verify: expected a model and no scan")
    if not (args.list or args.verify or args.list_series) and not (args.model and args.scans):
        p.error("expected a model and at least one scan (or --list)")


def run(args: argparse.Namespace) -> int:
    """Do what the arguments ask for."""
    voice = Voice("poan-run", level_of(quiet=args.quiet, verbose=args.verbose))
    if args.list:
        from poan_runtime.commands.list_models import list_models

        return list_models(voice)
    if args.verify:
        from poan_runtime.commands.verify_model import verify

        return verify(args, voice)
    from poan_runtime.commands import run_scans as command

    if args.list_series:
        return command.list_series([args.model, *args.scans], voice)
    return command.explain(args) if args.explain else command.run(args)


if __name__ == "__main__":
    raise SystemExit(main())
