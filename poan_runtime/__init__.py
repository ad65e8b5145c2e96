"""Super-resolve whole MR volumes tile by tile, without torch.

Each public name is imported when it is first asked for, so that ``poan-run --help`` loads
neither numpy nor nibabel::

    import poan_runtime

    fine = poan_runtime.upscale("scan.nii.gz", "t2_x2")
"""

import importlib
import os

# A machine beside a scanner reports to nobody. ONNX Runtime reads this when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

TYPE_CHECKING = False  # what type checkers take for True, without loading typing
if TYPE_CHECKING:
    from poan_runtime.engines.backend import EngineOptions as EngineOptions
    from poan_runtime.errors import PoanError as PoanError
    from poan_runtime.images.source import Sink as Sink
    from poan_runtime.images.source import Source as Source
    from poan_runtime.images.volume import Volume as Volume
    from poan_runtime.images.volume import read_volume as read_volume
    from poan_runtime.models.find import shipped_models as shipped_models
    from poan_runtime.network import Network as Network
    from poan_runtime.network import Settings as Settings
    from poan_runtime.network import load_network as load_network
    from poan_runtime.super_resolve import Outcome as Outcome
    from poan_runtime.super_resolve import upscale as upscale
    from poan_runtime.super_resolve import upscale_file as upscale_file

    __version__: str

_HOMES = {
    "EngineOptions": "engines.backend",
    "Network": "network",
    "Outcome": "super_resolve",
    "PoanError": "errors",
    "Settings": "network",
    "Sink": "images.source",
    "Source": "images.source",
    "Volume": "images.volume",
    "load_network": "network",
    "read_volume": "images.volume",
    "shipped_models": "models.find",
    "upscale": "super_resolve",
    "upscale_file": "super_resolve",
}
"""The table of public names: where each one lives."""

__all__ = [
    *_HOMES,
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        return importlib.import_module(f"{__name__}.extras").poan_version()
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.{_HOMES[name]}")
    return vars(home)[name]
