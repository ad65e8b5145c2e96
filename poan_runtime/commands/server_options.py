"""Options of the commands that can reach a model on a server."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from poan_runtime.engines.kserve.address import Access


def add_server_options(p: argparse.ArgumentParser) -> None:
    """Add those for ``kserve://host:port/MODEL``."""
    g = p.add_argument_group("a model on a server: kserve://HOST:PORT[,HOST:PORT]/MODEL")
    g.add_argument(
        "--manifest", type=Path, metavar="FOLDER", help="its export, if the server states none"
    )
    g.add_argument("--token-file", type=Path, help="file with the bearer token")
    g.add_argument("--ca", type=Path, metavar="PEM", help="who may vouch for a kserves:// server")
    g.add_argument("--client-cert", type=Path, metavar="PEM", help="certificate to show it")
    g.add_argument("--client-key", type=Path, metavar="PEM", help="key of that certificate")
    g.add_argument(
        "--patience", type=float, default=30.0, metavar="S", help="seconds to wait for a lost one"
    )


def access_of(args: argparse.Namespace) -> "Access":
    """What `add_server_options` read."""
    from poan_runtime.engines.kserve.address import Access

    return Access(
        manifest=args.manifest,
        token=args.token_file,
        ca=args.ca,
        certificate=args.client_cert,
        key=args.client_key,
        patience_s=args.patience,
    )
