"""Super-resolve whole MR volumes tile by tile, without torch.

`upscale`, `load_network`, `read_volume` and the types they use are imported when first asked
for, so that ``poan-run --help`` loads neither numpy nor nibabel.
"""

import importlib
import os
import sys

from poan_runtime.errors import PoanError

# A machine beside a scanner reports to nobody. ONNX Runtime reads this when it is imported;
# OpenVINO, which sends an event when it is, does so through a package that it can go without.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

TYPE_CHECKING = False  # what type checkers take for True, without loading typing
if TYPE_CHECKING:
    from poan_runtime.engines.backend import BackendOptions
    from poan_runtime.images.nifti.read import Volume, read_volume
    from poan_runtime.network import Network, Settings, load_network
    from poan_runtime.super_resolve import upscale

__all__ = [
    "BackendOptions",
    "Network",
    "PoanError",
    "Settings",
    "Volume",
    "load_network",
    "read_volume",
    "upscale",
]

_HOMES = {
    "BackendOptions": "engines.backend",
    "Network": "network",
    "Settings": "network",
    "Volume": "images.nifti.read",
    "load_network": "network",
    "read_volume": "images.nifti.read",
    "upscale": "super_resolve",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.{_HOMES[name]}")
    return vars(home)[name]
