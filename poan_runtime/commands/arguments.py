"""What the command lines share: errors of one line, the version, and numbers."""

import argparse
import contextlib
import io
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from poan_runtime.commands.say import printable
from poan_runtime.engines import PRECISIONS
from poan_runtime.extras import poan_version


class Parser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` with ``--version`` and errors of one line without the usage."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.add_argument("--version", action=_Version, help="print poan's version and leave")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does; what is printed from here on fits the terminal."""
        widen_output()
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and exit with status 2."""
        self.exit(2, f"{self.prog}: {printable(message)} (see {self.prog} --help)\n")


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, **settings: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, **settings)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print it, and exit with status 0."""
        sys.stdout.write(f"{parser.prog} {poan_version()}\n")
        parser.exit()


def widen_output() -> None:
    """Escape the characters that the terminal's encoding lacks; they would end the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def add_loudness(p: argparse.ArgumentParser) -> None:
    """``--quiet`` and ``--verbose``."""
    g = p.add_mutually_exclusive_group()
    add_quiet(g)
    g.add_argument("-v", "--verbose", action="store_true", help="print also why this engine")


def add_engine_options(
    p: argparse._ActionsContainer, threads: str = "threads of the inference engine"
) -> None:
    """``--backend``, ``--device``, ``--precision``, and ``--threads`` with its help."""
    p.add_argument("--backend", default="auto", help="auto, onnxruntime, openvino, ...")
    p.add_argument("--device", default="auto", type=device, help="auto, cpu, cuda (or gpu), cuda:N")
    p.add_argument(
        "--precision",
        default="auto",
        choices=PRECISIONS,
        help="of an ONNX file on a CPU; auto takes bf16 where the manifest says that it passed",
    )
    p.add_argument("--threads", type=positive, help=threads)


def add_quiet(p: argparse._ActionsContainer) -> None:
    """``--quiet`` alone, of a program or a group."""
    p.add_argument("-q", "--quiet", action="store_true", help="print warnings and errors alone")


def positive(text: str) -> int:
    """A whole number of at least 1."""
    return _at_least(1, text)


def natural(text: str) -> int:
    """A whole number of at least 0."""
    return _at_least(0, text)


def device(text: str) -> str:
    """``auto``, ``cpu``, ``cuda``, or one GPU of several, ``cuda:1``; ``gpu`` means ``cuda``.

    >>> device("gpu"), device("gpu:1"), device("cuda:0")
    ('cuda', 'cuda:1', 'cuda:0')
    """
    kind, colon, index = text.partition(":")
    kind = "cuda" if kind == "gpu" else kind
    if (kind in ("auto", "cpu", "cuda") and not colon) or (kind == "cuda" and index.isdecimal()):
        return kind + colon + index
    raise argparse.ArgumentTypeError(f"expected auto, cpu, cuda or cuda:N, got {text}")


def measured(text: str) -> str | float:
    """How much of the measured band is put back: auto, on, off, or a share from 0 to 1.

    >>> measured("auto"), measured("0.1")
    ('auto', 0.1)
    """
    if text in ("auto", "on", "off"):
        return text
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"expected auto, on, off or a share from 0 to 1, got {text}")


def axis(text: str) -> str:
    """A slice axis by number or name."""
    if text in ("0", "1", "2", "sagittal", "coronal", "axial"):
        return text
    raise argparse.ArgumentTypeError(
        f"slice axis: expected 0, 1, 2, sagittal, coronal or axial, got {text}"
    )


def _at_least(least: int, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text}")
    return value
