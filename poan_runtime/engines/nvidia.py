"""What the NVIDIA driver itself says, with nothing but the standard library.

The providers and packages that are installed say what could run; only the driver knows whether
there is a GPU, and which CUDA its packages may be built for.
"""

import ctypes
import dataclasses
import functools
import sys

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
CUDA_13 = 13000
LONGEST_NAME = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Driver:
    """The CUDA that the driver speaks, 13040 for 13.4, and the names of the GPUs it shows."""

    cuda: int
    gpus: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu:
    """A device. ``compute_capability`` as in a manifest, ``8.6``; ``sms`` are multiprocessors.

    ``driver`` and ``runtime`` are the CUDA of the driver and of the library, ``13.4``.
    """

    index: int
    name: str
    compute_capability: str
    memory_bytes: int
    sms: int = 0
    driver: str = ""
    runtime: str = ""


@functools.cache
def find_driver() -> Driver | None:
    """The driver of this machine; None where there is none, or none that starts."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        return None
    version, count = ctypes.c_int(), ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    started = library.cuInit(0) == 0 and library.cuDeviceGetCount(ctypes.byref(count)) == 0
    names = (_name(library, index) for index in range(count.value if started else 0))
    return Driver(cuda=version.value, gpus=tuple(names))


def _name(library: ctypes.CDLL, index: int) -> str:
    device, name = ctypes.c_int(), ctypes.create_string_buffer(LONGEST_NAME)
    failed = library.cuDeviceGet(ctypes.byref(device), index)
    failed = failed or library.cuDeviceGetName(name, LONGEST_NAME, device)
    return "unknown" if failed else name.value.decode(errors="replace")


def has_gpu() -> bool:
    """Whether the driver shows a GPU."""
    driver = find_driver()
    return driver is not None and bool(driver.gpus)


def gpu_name(index: int) -> str:
    """The name of a GPU, as the driver tells it."""
    driver = find_driver()
    names = () if driver is None else driver.gpus
    return names[index] if index < len(names) else "unknown"


def fitting_extra(flavour: str) -> str:
    """The extra of poan for ``tensorrt`` or ``tensorrt-rtx`` whose CUDA this driver speaks.

    Where there is no driver, the newest: it builds plans for elsewhere.
    """
    driver = find_driver()
    old = driver is not None and driver.cuda < CUDA_13
    return f"{flavour}-cu12" if old else f"{flavour}-cu13"


def device_index(device: str) -> int | None:
    """The GPU that ``--device`` names; None where it leaves the choice.

    >>> device_index("cuda:1"), device_index("cuda"), device_index("auto")
    (1, None, None)
    """
    kind, _, index = device.partition(":")
    return int(index) if kind == "cuda" and index.isdecimal() else None


def device_kind(device: str) -> str:
    """``cpu``, ``cuda`` or ``auto``: a device without the GPU's number.

    >>> device_kind("cuda:1"), device_kind("cpu")
    ('cuda', 'cpu')
    """
    return device.partition(":")[0]
