"""Checkpoints: tensors and one JSON string, safe for ``torch.load(weights_only=True)``."""

import json
import pickle
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import nn

from poan_runtime.errors import PoanError
from poan_runtime.files import WholeFile
from poan_train import networks

FORMAT = 1
READ_ERRORS: tuple[type[Exception], ...] = (pickle.UnpicklingError, EOFError, RuntimeError)
READ_ERRORS += (KeyError, TypeError, ValueError, AttributeError, IndexError)
"""What torch raises on a file that is no checkpoint, or a damaged one."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a checkpoint says of itself; the JSON string of the file."""

    arch: str
    network: dict[str, Any]
    contrast: str
    degradation: dict[str, Any]
    intensity: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)
    """Data files and licence, steps, schedule, seed."""
    metrics: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def scale(self) -> int:
        return int(self.network["scale"])


def save_checkpoint(
    path: Path, facts: Facts, weights: dict[str, torch.Tensor], state: dict[str, Any] | None = None
) -> None:
    """Write whole or not at all: a temporary file beside ``path``, flushed, then renamed.

    ``weights`` are those to use (the EMA's where there is one); ``state`` is what resuming needs.
    """
    content = {"facts": json.dumps(vars(facts)), "weights": weights, "state": state}
    path.parent.mkdir(parents=True, exist_ok=True)
    with WholeFile(path) as stream:
        try:
            torch.save(content, cast(IO[bytes], stream))
        except RuntimeError as error:  # torch's own, on top of what the disk refused
            refused = error.__context__
            raise (refused if isinstance(refused, PoanError) else error) from None


def read_checkpoint(path: Path) -> tuple[Facts, dict[str, torch.Tensor], dict[str, Any] | None]:
    """(facts, weights, training state or None).

    Raises PoanError when ``path`` is missing, is no checkpoint, or is of another format.
    """
    if (path / "manifest.json").is_file():
        raise PoanError(f"{path}: is an export; name the .pt that it was made of")
    if not path.is_file():
        raise PoanError(f"{path}: no such checkpoint")
    try:
        with warnings.catch_warnings():  # of odd bytes: they are refused, or do no harm
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
        facts = json.loads(content["facts"])
        weights, state = content["weights"], content["state"]
    except OSError as e:
        raise PoanError(f"{path}: cannot be read: {e.strerror or e}") from None
    except READ_ERRORS as e:
        raise PoanError(f"{path}: not a poan checkpoint, the .pt that poan-train writes") from e
    if facts.get("format") != FORMAT:
        raise PoanError(
            f"{path}: checkpoint format {facts.get('format')}, this poan reads {FORMAT}"
        )
    try:
        return Facts(**facts), weights, state
    except TypeError as error:
        raise PoanError(f"{path}: {error}") from None


def load_network(path: Path) -> tuple[nn.Module, Facts]:
    """The network of a checkpoint with its weights, in eval mode, float32, on the CPU."""
    facts, weights, _ = read_checkpoint(path)
    network = networks.build(facts.arch, networks.config_from_json(facts.arch, facts.network))
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise PoanError(f"{path}: weights do not fit {facts.arch}: {error}") from None
    return network.eval(), facts
