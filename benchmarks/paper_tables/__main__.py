"""python -m benchmarks.paper_tables: see the package's docstring and docs/networks.md."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.paper_tables.absent import why_absent, write_absent
from benchmarks.paper_tables.report import write_tables
from benchmarks.paper_tables.rows import CLASSICAL, Protocol, plan, run_row
from poan_runtime.errors import PoanError
from poan_train import networks
from poan_train.convention import add_measures, add_preparation, preparation_of
from poan_train.degrade import GRID
from poan_train.subjects import CONTRASTS, Source, find_sources, split_by_subject

DEFAULT = (
    *("bicubic", "nlm", "srcnn", "vdsr-lite", "rdn-lite"),
    *("edsr-lite", "csn-lite", "seran-lite", "poan-lite", "poan-lite+"),
)
TEST_SHARE = 0.12
"""Of the subjects, where IXI is not complete: 70 of 576."""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.paper_tables",
        description="Train and evaluate under one budget; write the paper's tables.",
        epilog="Options of poan-train after -- go to every training, e.g. -- --batch 8.",
    )
    p.add_argument("--data", type=Path, help="folder of training volumes")
    p.add_argument("--val", type=Path, help="folder of test volumes, of other subjects")
    p.add_argument("--ixi", type=Path, help="folder of IXI, instead of both")
    p.add_argument("--out", type=Path, required=True, help="folder of rows and tables")
    p.add_argument("--tables", type=int, nargs="+", choices=(1, 2, 3), default=[1, 2, 3])
    p.add_argument("--arch", nargs="+", default=DEFAULT, help="of Table 1; NAME+: self-ensemble")
    p.add_argument(
        "--contrast",
        nargs="+",
        choices=CONTRASTS,
        default=["PD", "T1", "T2"],
        help="of Table 1; one without volumes stays empty, with the reason",
    )
    p.add_argument(
        "--scale", type=int, nargs="+", choices=networks.SCALES, default=list(networks.SCALES)
    )
    p.add_argument(
        "--scanner",
        action="store_true",
        help="besides, a table of the same networks on LR as a scanner makes it",
    )
    p.add_argument("--seeds", type=int, nargs="+", default=[0])
    p.add_argument("--ablated", default="poan-lite", help="network of Tables 2 and 3")
    p.add_argument("--table2-contrast", choices=CONTRASTS, help="x2; default PD with --ixi, or T2")
    p.add_argument("--table3-contrast", choices=CONTRASTS, default="T1", help="x4")
    budget = p.add_mutually_exclusive_group()
    budget.add_argument("--steps", type=int, help="of every training")
    budget.add_argument("--minutes", type=float, help="of every training")
    budget.add_argument("--cpu-minutes", type=float, help="of every training: processor time")
    p.add_argument("--lr", type=float, nargs="+", default=[1e-3], help="rates each network tries")
    p.add_argument(
        "--try",
        action="append",
        dest="tries",
        default=[],
        metavar="OPTIONS",
        help="options of poan-train that each network tries at its best rate, as '--patch 32', or "
        "one network alone, as 'poan-lite: --set gate=sigmoid'",
    )
    p.add_argument(
        "--own",
        action="append",
        default=[],
        metavar="NAME: OPTIONS",
        help="options of poan-train of one network alone, as 'poan: --attention-from 0.5'",
    )
    p.add_argument("--search-steps", type=int, help="budget of a trial; the winner gets the whole")
    p.add_argument("--search-cpu-minutes", type=float, help="the same in processor time")
    p.add_argument("--degradation", choices=tuple(GRID), default="bicubic")
    p.add_argument("--tile", type=int, default=48, help="LR tile, 0 for whole slices")
    p.add_argument("--every", type=int, default=1, help="evaluate every N-th slice")
    c = p.add_argument_group("conventions, as poan-train --check-ixi prints them")
    add_preparation(c)
    add_measures(c)
    p.add_argument("--rows", type=int, help="make at most so many rows now")
    p.add_argument("--report", action="store_true", help="only write the tables from the rows")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    args = parser().parse_args(arguments[:cut])
    try:
        if not args.report:
            make_rows(args, arguments[cut + 1 :])
        for path in write_tables(args.out, args.psnr, args.ssim):
            print(path)
    except PoanError as error:
        print(f"paper_tables: {error}", file=sys.stderr)
        return 2
    return 0


def make_rows(args: argparse.Namespace, extra: Sequence[str]) -> None:
    """Run the rows that are not there yet, ``args.rows`` of them at most."""
    known = {*CLASSICAL, *networks.ARCHITECTURES, *(f"{a}+" for a in networks.ARCHITECTURES)}
    unknown = sorted({*args.arch, args.ablated} - known)
    if unknown:
        raise PoanError(f"no network {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    protocol = make_protocol(args, extra)
    absent = why_absent(args.contrast, protocol.train, protocol.val)
    write_absent(args.out, absent)
    rows = plan(
        args.tables,
        args.arch,
        [contrast for contrast in args.contrast if contrast not in absent],
        args.scale,
        args.seeds,
        args.ablated,
        (args.table2_contrast or ("PD" if args.ixi else "T2"), 2),
        (args.table3_contrast, 4),
        args.scanner,
    )
    made = 0
    for i, row in enumerate(rows):
        if made == args.rows:
            print(f"{len(rows) - i} rows left")
            break
        print(f"{i + 1}/{len(rows)} {row.name}", flush=True)
        made += run_row(row, protocol)


def make_protocol(args: argparse.Namespace, extra: Sequence[str]) -> Protocol:
    if args.ixi:
        train, val = link_ixi(args.ixi, args.out / "ixi")
    elif args.data and args.val:
        train, val = args.data, args.val
        _refuse_shared_subjects(train, val)
    else:
        raise PoanError("need --data and --val, or --ixi")
    budget = _budget(args, "", ("steps", "minutes", "cpu_minutes"))
    search = _budget(args, "search_", ("steps", "cpu_minutes"))
    if not budget:
        raise PoanError(
            "state the budget of every training, above zero: --steps, --minutes or --cpu-minutes"
        )
    return Protocol(
        train=train,
        val=val,
        out=args.out,
        budget=budget,
        search=search,
        tries=tuple(args.tries),
        rates=tuple(args.lr),
        degradation=args.degradation,
        tile=args.tile,
        every=args.every,
        extra=tuple(extra),
        own=tuple(args.own),
        preparation=preparation_of(args),
    )


def _budget(args: argparse.Namespace, prefix: str, options: Sequence[str]) -> tuple[str, ...]:
    """The option of poan-train for the last budget that is above zero; nothing if none is."""
    budget: tuple[str, ...] = ()
    for option in options:
        value = getattr(args, prefix + option)
        if value is not None and value > 0:
            budget = (f"--{option.replace('_', '-')}", f"{value:g}")
    return budget


def _refuse_shared_subjects(train: Path, val: Path) -> None:
    ours, theirs = ({s.subject for s in find_sources(f, "all")} for f in (train, val))
    if ours & theirs:
        raise PoanError(f"subjects {sorted(ours & theirs)} are both in --data and in --val")


def link_ixi(folder: Path, out: Path) -> tuple[Path, Path]:
    """(train, test) folders of links: IXI's 500 and 70 subjects, or, where it is not complete, all
    but a share of the subjects and that share."""
    sources = [s for s in find_sources(folder, "all") if s.is_ixi]
    subjects = sorted({s.subject for s in sources})
    if len(subjects) < 2:
        raise PoanError(f"{folder}: needs volumes of two subjects named as IXI's at least")
    if len(subjects) >= 570:
        train = [s for s in sources if s.subject in subjects[:500]]
        test = [s for s in sources if s.subject in subjects[500:570]]
    else:
        train, test = split_by_subject(sources, TEST_SHARE)
    return _links(train, out / "train"), _links(test, out / "test")


def _links(sources: Sequence[Source], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for source in sources:
        link = folder / source.path.name
        if not link.is_symlink():
            link.symlink_to(source.path.resolve())
    return folder


if __name__ == "__main__":
    sys.exit(main())
