"""Where `poan-train` and `poan-eval` start: one line in place of a traceback without torch."""

import importlib
from collections.abc import Sequence

from poan_runtime.commands.arguments import Parser
from poan_runtime.commands.guard import INTERRUPTED
from poan_runtime.commands.say import Voice
from poan_runtime.errors import PoanError
from poan_runtime.extras import needs

MODULES = ("torch", "scipy", "tensorboard", "tqdm")
"""What the extra ``train`` installs beside the plain install."""


def train(argv: Sequence[str] | None = None) -> int:
    """`poan-train`."""
    return start("poan-train", "poan_train.cli", argv)


def evaluate(argv: Sequence[str] | None = None) -> int:
    """`poan-eval`."""
    return start("poan-eval", "poan_train.evaluate", argv)


def start(command: str, module: str, argv: Sequence[str] | None) -> int:
    """Import the command's module, which takes torch, and run its ``main``.

    ``--version`` is answered without torch.
    """
    Parser(prog=command, add_help=False, allow_abbrev=False).parse_known_args(argv)
    try:
        with needs(MODULES, "train", "export"):
            main = importlib.import_module(module).main
    except PoanError as error:
        Voice(command).error(str(error))
        return 2
    except KeyboardInterrupt:
        Voice(command).error("interrupted")
        return INTERRUPTED
    status: int = main(argv)
    return status
