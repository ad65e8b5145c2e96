"""`poan-node`: a DICOM node that super-resolves what it is sent and sends the result on."""

import argparse
import contextlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from poan_runtime.commands.arguments import Parser
from poan_runtime.commands.guard import guarded
from poan_runtime.commands.say import write_line
from poan_runtime.errors import PoanError
from poan_runtime.extras import needs

if TYPE_CHECKING:
    from poan_runtime.services.dicom_node.config import Config

EPILOG = """\
examples:
  poan-node --config node.toml                    run; SIGTERM ends it once work at hand is done
  poan-node --config node.toml check-config --echo
  poan-node --config node.toml status             also while the node runs, like those below
  poan-node --config node.toml retry [SERIES]     what was given up gets another round
  poan-node --config node.toml drop SERIES        forget a series, with its files

SERIES is the name that status and the log show. exit status: 0 done; 2 something you can mend.
Not a medical device."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(
        prog="poan-node",
        description="Receive DICOM series, super-resolve them, send them on.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--config", type=Path, required=True, metavar="TOML", help="see docs")
    p.add_argument("--echo", action="store_true", help="check-config: call every peer")
    actions = ["run", "status", "retry", "drop", "check-config"]
    p.add_argument("action", nargs="?", default="run", choices=actions)
    p.add_argument("series", nargs="?", help="of retry and drop")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `EPILOG` for the exit status."""
    p = parser()
    args = p.parse_args(argv)
    if args.action == "drop" and not args.series:
        p.error("drop: expected a series")
    return guarded("poan-node", lambda: act(args))


def act(args: argparse.Namespace) -> int:
    """Do what the arguments ask for."""
    with needs("pynetdicom", "node"), needs("pydicom", "dicom"):
        from poan_runtime.services.dicom_node.config import read_config

        config = read_config(args.config)
        if args.action == "run":
            return _run(config)
        from poan_runtime.services.dicom_node import operate
    lines = {
        "status": lambda: operate.status(config),
        "retry": lambda: operate.retry(config, args.series),
        "drop": lambda: operate.drop(config, args.series),
        "check-config": lambda: operate.check(config, echo=args.echo),
    }[args.action]()
    for line in lines:
        write_line(line, sys.stdout)
    return 0


def _run(config: "Config") -> int:
    """Until SIGTERM or SIGINT."""
    from poan_runtime.services.dicom_node.log import silence_libraries
    from poan_runtime.services.dicom_node.monitor import Monitor
    from poan_runtime.services.dicom_node.node import Node

    silence_libraries()
    with contextlib.ExitStack() as stack:
        try:
            node = Node(config)
            if config.monitor_port:
                stack.callback(Monitor(node, config.monitor_port).close)
        except OSError as error:
            raise PoanError(f"cannot listen: {error.strerror or error}") from None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: node.end())
        node.run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
