"""`python -m poan_export.trial`: would this network be exported? Asked before it is trained.

Reads ``{"arch": ..., "network": {...}}`` from stdin and exports one small tile of fresh weights,
with no file written. Exit status 0, or 2 with the reason in one line.
"""

import json
import sys

from poan_export.rewrite.network import rewrite, rules_for
from poan_export.rewrite.root import Scheme
from poan_export.trace.onnx_export import export_twin
from poan_runtime.commands.guard import guarded
from poan_train import networks

TILE = 33
"""LR voxels, the tile of the small networks; what is refused does not depend on it."""


def main() -> int:
    """Export, forget."""
    asked = json.load(sys.stdin)
    arch = asked["arch"]

    def work() -> int:
        network = networks.build(arch, networks.config_from_json(arch, asked["network"])).eval()
        rules = rules_for(Scheme(name="quintic", iterations=7), "box")
        export_twin(rewrite(network, rules), TILE)
        return 0

    return guarded("poan-export", work)


if __name__ == "__main__":
    raise SystemExit(main())
