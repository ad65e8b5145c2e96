"""The networks by name. A new one is one file and one line in :data:`ARCHITECTURES`."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import nn

from poan_runtime.errors import PoanError
from poan_train.networks.config import DENSE, SCALES, POANConfig
from poan_train.networks.csn import CSN, CSNConfig
from poan_train.networks.edsr import EDSR, EDSRConfig
from poan_train.networks.poan import POAN
from poan_train.networks.rdn import RDN, RDNConfig
from poan_train.networks.seran import SERAN, SERANConfig
from poan_train.networks.srcnn import SRCNN, SRCNNConfig
from poan_train.networks.vdsr import VDSR, VDSRConfig

__all__ = ["ARCHITECTURES", "SCALES", "Architecture", "build", "make_config"]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network class, its config class, and the values a preset changes in that config."""

    network: Callable[[Any], nn.Module]
    config: Callable[..., Any]
    preset: Mapping[str, Any]
    small: bool = False
    """Trains with a CPU's settings by default, not with the paper's."""

    @property
    def tile(self) -> int:
        """Side in LR voxels of the tile it is exported and evaluated with unless told otherwise.

        A multiple of 3, which patches at stride 3 cover without a border: with the overlap below,
        four tiles of 33 and two of 66 cover the 120 voxels of half a 240-voxel side, and four of
        66 the 240, where 63 takes three and five. More is not better: a dense ``poan-lite`` had
        36.28, 36.28 and 36.29 dB with tiles of 24, 32 and 48 on the T2 x2 validation scans.
        """
        return 33 if self.small else 66

    @property
    def halo(self) -> int:
        """Border of each tile that is thrown away, in LR voxels."""
        return 0 if self.small else 2

    @property
    def overlap(self) -> int:
        """What neighbouring tiles share and blend, in LR voxels."""
        return 4 if self.small else 6


LITE = {
    "channels": 32,
    "blocks": 16,
    "poab_after": 8,
    "embedding": 16,
    "point": False,
    "patch_at_full_scale": False,
    "zero_start": True,
    "image_skip": "bicubic",
}

LITE_DENSE = {**LITE, **DENSE, "point": True}

BASELINE = {"channels": 64, "blocks": 16, "residual_scale": 1.0}
"""EDSR's own smaller network."""
# the sizes below have poan-lite's 352,231 parameters at x2 within 3 %
EDSR_LITE = {"channels": 32, "blocks": 17, "residual_scale": 1.0, "image_skip": "bicubic"}
RDN_LITE = {"channels": 32, "growth": 16, "blocks": 6, "layers": 5, "image_skip": "bicubic"}
CSN_LITE = {"channels": 32, "growth": 8, "blocks": 11, "layers": 4, "image_skip": "bicubic"}
SERAN_LITE = {
    "channels": 32,
    "blocks": 16,
    "attention_every": 8,
    "relation": 16,
    "zero_start": True,
    "image_skip": "bicubic",
}

SIZES = ("channels", "embedding", "growth", "layers", "relation", "attention_every")
"""Fields of a config that count what there must be one of."""
ARCHITECTURES: Mapping[str, Architecture] = {
    "poan": Architecture(network=POAN, config=POANConfig, preset={}),
    "poan-lite": Architecture(network=POAN, config=POANConfig, preset=LITE, small=True),
    "poan-dense": Architecture(network=POAN, config=POANConfig, preset=DENSE),
    "poan-lite-dense": Architecture(network=POAN, config=POANConfig, preset=LITE_DENSE, small=True),
    "edsr": Architecture(network=EDSR, config=EDSRConfig, preset={}),
    "edsr-baseline": Architecture(network=EDSR, config=EDSRConfig, preset=BASELINE),
    "edsr-lite": Architecture(network=EDSR, config=EDSRConfig, preset=EDSR_LITE, small=True),
    "rdn": Architecture(network=RDN, config=RDNConfig, preset={}),
    "rdn-lite": Architecture(network=RDN, config=RDNConfig, preset=RDN_LITE, small=True),
    "csn": Architecture(network=CSN, config=CSNConfig, preset={}),
    "csn-lite": Architecture(network=CSN, config=CSNConfig, preset=CSN_LITE, small=True),
    "seran": Architecture(network=SERAN, config=SERANConfig, preset={}),
    "seran-lite": Architecture(network=SERAN, config=SERANConfig, preset=SERAN_LITE, small=True),
    "vdsr": Architecture(network=VDSR, config=VDSRConfig, preset={}),
    "vdsr-lite": Architecture(network=VDSR, config=VDSRConfig, preset={"channels": 47}, small=True),
    "srcnn": Architecture(network=SRCNN, config=SRCNNConfig, preset={}, small=True),
}


def make_config(arch: str, scale: int, **changes: Any) -> Any:
    """The frozen config of preset ``arch`` at ``scale``, with ``changes`` to its fields."""
    if arch not in ARCHITECTURES:
        raise PoanError(f"no network {arch!r}; there are {', '.join(ARCHITECTURES)}")
    entry = ARCHITECTURES[arch]
    defaults = {field.name: field.default for field in fields(entry.config)}  # type: ignore[arg-type]
    for name, value in changes.items():
        if name not in defaults:
            raise PoanError(f"{arch} has no setting {name}; it has {', '.join(defaults)}")
        number = isinstance(defaults[name], int | float) and not isinstance(defaults[name], bool)
        if number and not isinstance(value, int | float):
            raise PoanError(f"{arch}: {name}: expected a number, got {value!r}")
        if name in SIZES and min(value if isinstance(value, tuple) else (value,)) < 1:
            raise PoanError(f"{arch}: {name}: expected at least 1, got {value!r}")
    values = {**entry.preset, "scale": scale, **changes}
    try:
        return entry.config(**values)
    except (TypeError, ValueError) as error:
        raise PoanError(f"{arch}: {error}") from None


def build(arch: str, config: Any) -> nn.Module:
    """The network ``arch`` with fresh weights."""
    return ARCHITECTURES[arch].network(config)


def unexportable(network: nn.Module) -> list[str]:
    """A line for each module that trains and that poan-export then refuses."""
    return [
        f"{name}: nn.Upsample cannot be exported (runtimes disagree on its coordinates); use "
        "poan_train.networks.blocks.BicubicUp or a PixelShuffle"
        for name, module in network.named_modules()
        if isinstance(module, nn.Upsample)
    ]


def config_from_json(arch: str, values: Mapping[str, Any]) -> Any:
    """The config saved in a checkpoint: lists become tuples, unknown fields are refused.

    A POAN that does not name a field of :data:`poan_train.networks.config.DENSE` was trained
    before there was one: it has the value that stands there.
    """
    frozen = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    scale = frozen.pop("scale", None)
    if arch not in ARCHITECTURES:
        raise PoanError(f"no network {arch!r}; there are {', '.join(ARCHITECTURES)}")
    absent = DENSE if ARCHITECTURES[arch].config is POANConfig else {}
    try:
        return ARCHITECTURES[arch].config(scale=scale, **{**absent, **frozen})
    except (TypeError, ValueError) as error:
        raise PoanError(f"{arch}: {error}") from None


def config_to_json(config: Any) -> dict[str, Any]:
    """Plain values of a frozen config."""
    return asdict(config)
