#!/usr/bin/env bash
# Climbs the ladder of GPU checks, without network, and writes one JSON that no crash loses.
#
#   benchmarks/gpu_check.sh [OUT.json] [--rungs NAMES] [--rehearse]
#
# PYTHON names the interpreter (default: .venv/bin/python if there is one, else python3). It must
# have poan's extras cpu, export, dev, and one of the tensorrt ones; nothing is downloaded. Exit
# status: 0 if every rung that ran passed, 1 if one failed, 3 if none ran (no GPU, no library).
# --rehearse shows on a machine without a GPU that the ladder itself holds.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
[ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ] && python=.venv/bin/python
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m benchmarks.gpu_check "$@"
