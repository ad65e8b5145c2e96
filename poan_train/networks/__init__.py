"""The networks by name. A new one is one file and one line in :data:`ARCHITECTURES`."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from poan_runtime.errors import PoanError
from poan_train.networks.config import SCALES, POANConfig
from poan_train.networks.poan import POAN

__all__ = ["ARCHITECTURES", "SCALES", "Architecture", "build", "make_config"]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network class, its config class, and the values a preset changes in that config."""

    network: Callable[[Any], nn.Module]
    config: Callable[..., Any]
    preset: Mapping[str, Any]


LITE = {
    "channels": 32,
    "blocks": 16,
    "poab_after": 8,
    "embedding": 16,
    "patch_at_full_scale": False,
    "zero_start": True,
    "image_skip": "bicubic",
}

ARCHITECTURES: Mapping[str, Architecture] = {
    "poan": Architecture(network=POAN, config=POANConfig, preset={}),
    "poan-lite": Architecture(network=POAN, config=POANConfig, preset=LITE),
}


def make_config(arch: str, scale: int, **changes: Any) -> Any:
    """The frozen config of preset ``arch`` at ``scale``, with ``changes`` to its fields."""
    if arch not in ARCHITECTURES:
        raise PoanError(f"no network {arch!r}; there are {', '.join(ARCHITECTURES)}")
    entry = ARCHITECTURES[arch]
    values = {**entry.preset, "scale": scale, **changes}
    try:
        return entry.config(**values)
    except (TypeError, ValueError) as error:
        raise PoanError(f"{arch}: {error}") from None


def build(arch: str, config: Any) -> nn.Module:
    """The network ``arch`` with fresh weights."""
    return ARCHITECTURES[arch].network(config)


def config_from_json(arch: str, values: Mapping[str, Any]) -> Any:
    """The config saved in a checkpoint: lists become tuples, unknown fields are refused."""
    frozen = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    scale = frozen.pop("scale", None)
    if arch not in ARCHITECTURES:
        raise PoanError(f"no network {arch!r}; there are {', '.join(ARCHITECTURES)}")
    try:
        return ARCHITECTURES[arch].config(scale=scale, **frozen)
    except (TypeError, ValueError) as error:
        raise PoanError(f"{arch}: {error}") from None


def config_to_json(config: Any) -> dict[str, Any]:
    """Plain values of a frozen config."""
    return asdict(config)
