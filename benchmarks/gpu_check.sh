#!/usr/bin/env bash
# Runs every gpu test on a machine with an NVIDIA GPU, without network, and writes JSON.
#
#   benchmarks/gpu_check.sh [OUT.json] [TESTS...]     (default: gpu_check.json tests)
#
# PYTHON names the interpreter (default: .venv/bin/python if there is one, else python3). It must
# have poan's extras cpu, export, dev, and tensorrt or tensorrt-rtx; nothing is downloaded. Exit
# status: 0 if every test that ran passed, 1 if one failed, 3 if none ran (no GPU, no library).
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-gpu_check.json}")
tests=("${@:2}")
[ ${#tests[@]} -eq 0 ] && tests=(tests)
python=${PYTHON:-python3}
[ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ] && python=.venv/bin/python
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
"$python" -m pytest -m gpu "${tests[@]}" -q -rs --junitxml="$work/tests.xml" | tee "$work/log"

"$python" - "$work/tests.xml" "$out" <<'PY'
import json
import sys
import xml.etree.ElementTree as ET

from poan_runtime.bench.machine import describe_machine, snapshot

suite = ET.parse(sys.argv[1]).getroot().find("testsuite")
tests = []
for case in suite.findall("testcase"):
    entry = {"name": case.get("name"), "seconds": float(case.get("time")), "outcome": "passed"}
    for kind, outcome in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
        found = case.find(kind)
        if found is not None:
            entry |= {"outcome": outcome, "reason": found.get("message")}
            if outcome == "failed":
                entry["text"] = found.text
    tests.append(entry)
counts = {
    outcome: sum(test["outcome"] == outcome for test in tests)
    for outcome in ("passed", "failed", "skipped")
}
document = {
    "gpu_check_version": 1,
    "machine": describe_machine(),
    "state": snapshot(),
    "counts": counts,
    "tests": tests,
}
with open(sys.argv[2], "w", encoding="utf-8") as file:
    json.dump(document, file, indent=1)
    file.write("\n")
print(f"{sys.argv[2]}: {counts}")
if counts["failed"]:
    sys.exit(1)
sys.exit(0 if counts["passed"] else 3)
PY
