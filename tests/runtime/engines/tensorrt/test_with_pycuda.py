"""The pycuda backend against a stand-in for pycuda: its own order of calls, on the host.

That pycuda and TensorRT take these calls was not seen: there was no GPU.
"""

import dataclasses
import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from poan_runtime.engines.backend import EngineOptions
from poan_runtime.engines.tensorrt.ports import Ports
from poan_runtime.engines.which_file import find_runnable
from poan_runtime.errors import PoanError
from poan_runtime.models.find import find_model
from tests.runtime.engines.conformance import check_backend

TILE, BATCH, SCRATCH = 4, 3, 64
PORTS = Ports(
    input="lr", output="sr", batch=BATCH, row_in=(1, TILE, TILE), row_out=(1, 2 * TILE, 2 * TILE)
)


class Memory:
    """Device memory by its address."""

    all: dict[int, "Memory"] = {}  # noqa: RUF012
    freed = 0

    def __init__(self, size: int) -> None:
        self.values = np.zeros(size // 4, np.float32)
        Memory.all[id(self)] = self

    def __int__(self) -> int:
        return id(self)

    def free(self) -> None:
        Memory.freed += 1


class Stream:
    """Brings answers only when it is waited for."""

    handle = 7

    def __init__(self) -> None:
        self.under_way: list[tuple[Any, Memory]] = []

    def synchronize(self) -> None:
        for array, memory in self.under_way:
            array[:] = memory.values.reshape(array.shape)
        self.under_way.clear()


def upload(memory: Memory, array: Any, stream: Stream) -> None:
    memory.values[:] = array.ravel()


def download(array: Any, memory: Memory, stream: Stream) -> None:
    stream.under_way.append((array, memory))


class Context:
    """An execution context that repeats voxels."""

    def __init__(self) -> None:
        self.addresses: dict[str, int] = {}
        self.scratch: tuple[int, int] | None = None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        return shape == (BATCH, *PORTS.row_in)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def update_device_memory_size_for_shapes(self) -> int:
        return SCRATCH

    def set_device_memory(self, memory: int, size: int) -> None:
        self.scratch = (memory, size)

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == Stream.handle
        coarse, fine = (Memory.all[self.addresses[name]].values for name in ("lr", "sr"))
        tiles = coarse.reshape(BATCH, *PORTS.row_in)
        fine[:] = tiles.repeat(2, 2).repeat(2, 3).ravel()
        return True


class Cache:
    saved = 0

    def save(self) -> None:
        Cache.saved += 1


class CudaError(Exception):
    pass


def refuse() -> None:
    raise CudaError("cuInit failed: no CUDA-capable device is detected")


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The backend's module, with a stand-in for pycuda; left as it was afterwards."""
    driver = types.ModuleType("pycuda.driver")
    driver.__dict__.update(
        Stream=Stream,
        mem_alloc=Memory,
        pagelocked_empty=np.zeros,
        memcpy_htod_async=upload,
        memcpy_dtoh_async=download,
        init=refuse,
        Error=CudaError,
    )
    package = types.ModuleType("pycuda")
    package.__dict__.update(driver=driver)
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    name = "poan_runtime.engines.tensorrt.with_pycuda"
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module(name)
    sys.modules.pop(name, None)


def test_it_keeps_the_contract_of_an_engine(module: Any) -> None:
    check_backend(module.PycudaBackend(Context(), PORTS, Cache()), tile=TILE, scale=2)


@pytest.mark.parametrize("count", [1, BATCH, 2 * BATCH + 1])
def test_any_number_of_tiles_is_answered_in_order(count: int, module: Any) -> None:
    batch = np.random.default_rng(count).random((count, *PORTS.row_in), np.float32)
    engine = module.PycudaBackend(Context(), PORTS, Cache())
    assert np.array_equal(engine.run(batch), batch.repeat(2, 2).repeat(2, 3))


def test_closing_keeps_the_kernels_and_frees_each_buffer_once(module: Any) -> None:
    context, Memory.freed, Cache.saved = Context(), 0, 0
    engine = module.PycudaBackend(context, PORTS, Cache())
    assert context.scratch is not None
    assert context.scratch[1] == SCRATCH
    engine.close()
    engine.close()
    assert (Memory.freed, Cache.saved) == (3, 1)


def test_a_shape_that_the_engine_does_not_take_is_named(module: Any) -> None:
    ports = dataclasses.replace(PORTS, batch=2)
    with pytest.raises(PoanError, match=r"takes no batch of shape \(2, 1, 4, 4\)"):
        module.PycudaBackend(Context(), ports, Cache())


def test_without_a_gpu_the_reason_is_one_line(module: Any) -> None:
    with pytest.raises(PoanError, match="no GPU: cuInit failed"):
        module._device(EngineOptions(device="cuda"))


def test_it_needs_no_cuda_python(module: Any) -> None:
    source = importlib.import_module("inspect").getsource(module)
    assert "tensorrt.cuda" not in source
    assert "tensorrt import cuda" not in source


class Device:
    """Two cards of compute capability 8.6; the second one is current where there is a context."""

    current: ClassVar[bool] = True
    pushed: ClassVar[list[int]] = []

    def __init__(self, index: int) -> None:
        self.index = index

    def retain_primary_context(self) -> "Device":
        return self

    def push(self) -> None:
        Device.pushed.append(self.index)

    @staticmethod
    def count() -> int:
        return 2

    @staticmethod
    def get_current() -> object | None:
        return "a context" if Device.current else None

    @staticmethod
    def get_device() -> "Device":
        return Device(1) if Device.current else Device(Device.pushed[-1])

    def pci_bus_id(self) -> str:
        return f"0000:0{self.index}:00.0"

    def compute_capability(self) -> tuple[int, int]:
        return (8, 6)

    def name(self) -> str:
        return f"card {self.index}"

    def total_memory(self) -> int:
        return 1 << 33

    def get_attribute(self, which: object) -> int:
        return 84


@pytest.fixture
def loaded(module: Any, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """A card that runs the plan of the folder; gives the bytes that were loaded."""
    pytest.importorskip("tensorrt_rtx", reason="the folder under test holds a real plan")
    kept: list[bytes] = []
    Device.pushed.clear()
    monkeypatch.setattr(Device, "current", True)
    module.pycuda.__dict__.update(
        init=lambda: None,
        Device=Device,
        Context=Device,
        device_attribute=types.SimpleNamespace(MULTIPROCESSOR_COUNT=16),
        get_driver_version=lambda: 13010,
        get_version=lambda: (13, 4, 0),
    )
    real = module.check_header

    def header(model: Any, plan: bytes, library: Any, *, gpu: bool) -> tuple[str, ...]:
        return ("runs, but was not built for it",) if gpu else real(model, plan, library, gpu=gpu)

    monkeypatch.setattr(module, "check_header", header)
    monkeypatch.setattr(module, "deserialised", lambda model, plan, library: kept.append(plan))
    monkeypatch.setattr(module, "find_ports", lambda model, library, engine: PORTS)
    cache = types.SimpleNamespace(context=lambda engine: Context(), save=lambda: None)
    monkeypatch.setattr(module, "KernelCache", lambda library, gpu, sha256: cache)
    return kept


def test_a_plan_is_opened_in_the_callers_context_with_the_bytes_that_were_checked(
    folder: Path, module: Any, loaded: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, reads = find_model(folder / "engine.plan"), module.read_plan
    good = model.path.read_bytes()

    def swapped(model: Any) -> bytes:
        plan: bytes = reads(model)
        model.path.write_bytes(b"another")
        return plan

    monkeypatch.setattr(module, "read_plan", swapped)
    opened = module.open_backend(model, EngineOptions(backend="tensorrt-pycuda"))
    assert opened.device == "cuda:1 (card 1)"
    assert opened.notices == ("runs, but was not built for it",)
    assert Device.pushed == []
    assert loaded == [good]


def test_without_a_context_the_primary_one_of_the_gpu_that_was_named_is_made_current(
    folder: Path, module: Any, loaded: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Device, "current", False)
    options = EngineOptions(backend="tensorrt-pycuda", device="cuda:1")
    opened = module.open_backend(find_model(folder / "engine.plan"), options)
    assert (opened.device, Device.pushed) == ("cuda:1 (card 1)", [1])


def test_a_plan_for_another_gpu_is_not_loaded(
    folder: Path, module: Any, loaded: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Device, "compute_capability", lambda self: (9, 0))
    with pytest.raises(PoanError, match=r"built for compute capability 8\.6, 8\.9"):
        module.open_backend(find_model(folder / "engine.plan"), EngineOptions())
    assert loaded == []


def test_the_plan_that_is_named_is_taken_without_asking_cuda_python(folder: Path) -> None:
    """There need not be any beside pycuda."""
    options = EngineOptions(backend="tensorrt-pycuda")
    assert find_runnable(folder / "engine.plan", options).path.name == "engine.plan"
