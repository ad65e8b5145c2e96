"""The pycuda backend against a stand-in for pycuda: its own order of calls, on the host.

That pycuda and TensorRT take these calls was not seen: there was no GPU.
"""

import dataclasses
import importlib
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from poan_runtime.engines.backend import EngineOptions
from poan_runtime.engines.tensorrt.ports import Ports
from poan_runtime.errors import PoanError
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
