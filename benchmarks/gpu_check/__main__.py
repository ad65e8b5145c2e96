"""The ladder: ``python -m benchmarks.gpu_check [OUT.json] [--rungs A,B] [--rehearse]``."""

import argparse
import sys
from pathlib import Path

from benchmarks.gpu_check.ladder import REHEARSED, RUNGS, climb

REHEARSAL = {"crash": "died of SIGSEGV", "hang": "took more than 2 s", "versions": "passed"}
"""What the rungs of a rehearsal must come to, GPU or not."""


def main() -> int:
    p = argparse.ArgumentParser(prog="gpu_check.sh", description=__doc__)
    p.add_argument("out", nargs="?", type=Path, default=Path("gpu_check.json"))
    p.add_argument("--rungs", help=f"of {','.join(rung.name for rung in RUNGS)}")
    p.add_argument("--rehearse", action="store_true")
    args = p.parse_args()
    wanted = args.rungs.split(",") if args.rungs else [rung.name for rung in RUNGS]
    rungs = [rung for rung in RUNGS if rung.name in wanted]
    if args.rehearse:
        rungs = [*REHEARSED, *rungs]
    found = climb(rungs, args.out)
    outcomes = {rung["name"]: str(rung["outcome"]) for rung in found["rungs"]}
    if args.rehearse:
        return rehearsed(outcomes)
    ran = [outcome for name, outcome in outcomes.items() if name != "versions"]
    if any(outcome not in ("passed", "skipped") for outcome in outcomes.values()):
        return 1
    return 0 if "passed" in ran else 3


def rehearsed(outcomes: dict[str, str]) -> int:
    """0 where crash and hang were survived, and every other rung passed or said why not."""
    bad = {name: outcomes.get(name) for name, due in REHEARSAL.items() if outcomes.get(name) != due}
    others = {name: outcome for name, outcome in outcomes.items() if name not in REHEARSAL}
    bad |= {n: outcome for n, outcome in others.items() if outcome not in ("passed", "skipped")}
    print(f"rehearsal: {bad or 'holds'}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
