"""The options of poan-train."""

import argparse
from pathlib import Path

from poan_runtime.commands.arguments import Parser, add_quiet
from poan_train import networks
from poan_train.convention import add_preparation
from poan_train.paper.ablations import ABLATIONS
from poan_train.subjects import CONTRAST_WORDS, CONTRASTS, EVERY, contrast_word

EPILOG = """\
examples:
  poan-train --data scans --scale 2 --minutes 40 --out t2_x2.pt           T2, a small network
  poan-train --data scans --scale 2 --minutes 40 --out t2_x2.pt --resume  goes on after Ctrl-C
  poan-train --data scans --contrast MR --scale 4 --steps 20000 --out mr_x4.pt
  poan-train --data scans --val others --scale 2 --minutes 40 --init t2_x2.pt --out own.pt
  poan-eval --ckpt t2_x2.pt --data others            what the network gains
  poan-export --ckpt t2_x2.pt                        makes a model of it, for poan-run

exit status: 0 done; 2 something you can mend (one line says what); 130 stopped by Ctrl-C
or SIGTERM, and the checkpoint holds the step that was reached."""


def parser() -> argparse.ArgumentParser:
    """The command line of poan-train."""
    p = Parser(
        prog="poan-train",
        description="From a folder of NIfTI volumes to a checkpoint.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_quiet(p)
    _add_what(p)
    _add_checkpoint(p)
    _add_calibration(p)
    _add_training(p)
    return p


def _add_what(p: argparse.ArgumentParser) -> None:
    """The network, and the data that it is trained on."""
    p.add_argument("--data", type=Path, help="folder of NIfTI volumes (with --steps 0 not needed)")
    p.add_argument(
        "--contrast",
        type=contrast_word,
        choices=(*CONTRASTS, *EVERY),
        default="T2",
        help=f"volumes to train on (default: T2): {CONTRAST_WORDS}",
    )
    p.add_argument("--scale", type=int, choices=networks.SCALES, help="how much finer SR is")
    p.add_argument(
        "--arch",
        choices=tuple(networks.ARCHITECTURES),
        default="poan-lite",
        help="network (default: poan-lite, small enough for CPUs)",
    )
    p.add_argument("--ablation", choices=tuple(ABLATIONS), help="a row of the paper's tables")
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a field of the network's config, as gate=sigmoid or blocks=8",
    )
    p.add_argument(
        "--lr-model",
        "--degradation",
        default="scanner",
        metavar="KIND",
        help="how LR is made: scanner (default), bicubic, truncated, kspace, or a .toml file of "
        "poan_train.acquire.Acquisition's fields",
    )
    p.add_argument(
        "--val", type=Path, help="folder of validation volumes; else subjects are held out"
    )
    p.add_argument(
        "--hold-out",
        nargs="+",
        default=[],
        metavar="SUBJECT",
        help="subjects that are neither trained nor validated on, or files with one on each line",
    )
    p.add_argument("--val-share", type=float, default=0.1, help="share of subjects held out")
    p.add_argument("--table", type=Path, help="TSV with file, contrast, subject")
    p.add_argument("--axis", help="slice axis: 0, 1, 2, sagittal, coronal or axial")
    add_preparation(p.add_argument_group("a paper's conventions, not for LR as a scanner makes it"))
    p.add_argument("--cache", type=Path, help="folder of decoded volumes")
    p.add_argument("--licence", default="", help="licence of the data, recorded in the checkpoint")


def _add_checkpoint(p: argparse.ArgumentParser) -> None:
    """What is written, and what it goes on from."""
    p.add_argument("--out", type=Path, help="checkpoint to write, NAME.pt")
    p.add_argument(
        "--resume",
        action="store_true",
        help="go on from --out where it left off; the budget counts the earlier run too",
    )
    p.add_argument(
        "--allow-changes",
        action="store_true",
        help="--resume also with other data, contrast, LR model or settings",
    )
    p.add_argument("--overwrite", action="store_true", help="replace --out if it is there")
    p.add_argument(
        "--no-export-trial",
        action="store_true",
        help="train a network that poan-export would refuse, too",
    )
    p.add_argument("--init", type=Path, help="checkpoint whose fitting tensors to start from")


def _add_calibration(p: argparse.ArgumentParser) -> None:
    c = p.add_argument_group("calibration, instead of training")
    c.add_argument(
        "--check-ixi",
        type=Path,
        metavar="DIR",
        help="folder of IXI: which degradation and metric reproduce the paper's bicubic row?",
    )
    c.add_argument("--check-volumes", type=int, default=8, metavar="N", help="of each contrast")


def _add_training(p: argparse.ArgumentParser) -> None:
    t = p.add_argument_group("training (default: a CPU's for small networks, else the paper's)")
    _add_budget(t)
    t.add_argument("--batch", type=int, help="patches of a step, of all processes together")
    t.add_argument("--patch", type=int, help="side of an LR patch")
    t.add_argument("--lr", type=float, help="learning rate of Adam")
    t.add_argument(
        "--schedule",
        choices=("paper", "cosine"),
        help="the rate: halved every fifth of the run, or a cosine to zero",
    )
    t.add_argument("--warmup", type=int, help="steps in which the rate rises")
    t.add_argument("--clip", type=float, help="largest norm of the gradient")
    t.add_argument("--ema", type=float, help="decay of the weights' moving average; 0 for none")
    t.add_argument("--attention-from", type=float, help="share of the run before POAB joins")
    t.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        help="auto (default) takes bf16 where the device computes in it, else fp32",
    )
    t.add_argument(
        "--channels-last",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="tensors with their channels innermost (default)",
    )
    t.add_argument("--compile", action="store_true", default=None, help="torch.compile the network")
    t.add_argument("--seed", type=int, help="of weights and patches (default: 0)")
    t.add_argument("--log-every", type=int, help="steps between records (50)")
    t.add_argument("--validate-every", type=int, help="steps between validations (1000)")


def _add_budget(t: argparse._ActionsContainer) -> None:
    """How long to train, said in one of three ways."""
    budget = t.add_mutually_exclusive_group()
    budget.add_argument(
        "--steps",
        type=int,
        help="default: 20000 for small networks, else 200000; 0 writes untrained weights. Say "
        "--steps, --minutes or --cpu-minutes, not two of them",
    )
    budget.add_argument("--minutes", type=float, help="by the clock, in place of --steps")
    budget.add_argument("--cpu-minutes", type=float, help="of processor time, all threads together")
