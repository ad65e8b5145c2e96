"""``python -m tests.fuzz``: spoil inputs, and see that nothing worse than one line comes of it.

python -m tests.fuzz --cases 100000 --json benchmarks/results/fuzz.json
python -m tests.fuzz --only headers --case 1234      one case again, with its traceback
"""

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections import Counter
from importlib import util
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.targets import TARGETS

NEEDS = {"checkpoints": "torch", "dicom": "pydicom"}
MOST_SHOWN = 2000


def names() -> list[str]:
    """The targets that can run here."""
    return [name for name in TARGETS if name not in NEEDS or util.find_spec(NEEDS[name])]


def run_case(name: str, folder: Path, seed: int, case: int) -> str:
    """``accepted`` or ``refused``; raises what is a finding. The same for the same numbers."""
    return TARGETS[name][0](folder, Random(f"{seed} {name} {case}"))


def fuzz(cases: int, seed: int, only: str | None = None, first: int = 0) -> dict[str, Any]:
    """Counts by target, and the findings with the last line of each traceback."""
    counts: dict[str, Counter[str]] = {}
    findings: list[dict[str, Any]] = []
    start = time.perf_counter()
    chosen = [only] if only else names()
    shares = {name: TARGETS[name][1] for name in chosen}
    for name in chosen:
        counts[name] = Counter()
        count = max(1, round(cases * shares[name] / sum(shares.values())))
        with tempfile.TemporaryDirectory(prefix="poan-fuzz-") as folder:
            for case in range(first, first + count):
                try:
                    counts[name][run_case(name, Path(folder), seed, case)] += 1
                except Exception as error:  # everything that leaves a target is a finding
                    counts[name]["findings"] += 1
                    frame = traceback.extract_tb(error.__traceback__)[-1]
                    where = f"{Path(frame.filename).name}:{frame.lineno}"
                    findings.append(
                        {"target": name, "case": case, "where": where}
                        | {"error": f"{type(error).__name__}: {error}"[:300]}
                    )
    return {
        "seed": seed,
        "cases": sum(sum(counter.values()) for counter in counts.values()),
        "seconds": round(time.perf_counter() - start, 1),
        "targets": {name: dict(sorted(counter.items())) for name, counter in counts.items()},
        "findings": findings[-MOST_SHOWN:],
    }


def main() -> int:
    p = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    p.add_argument("--cases", type=int, default=2000)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--only", choices=tuple(TARGETS))
    p.add_argument("--case", type=int, help="this one alone, with its traceback")
    p.add_argument("--json", type=Path)
    args = p.parse_args()
    if args.case is not None:
        with tempfile.TemporaryDirectory(prefix="poan-fuzz-") as folder:
            sys.stdout.write(run_case(args.only, Path(folder), args.seed, args.case) + "\n")
        return 0
    found = fuzz(args.cases, args.seed, args.only)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    return 1 if found["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
