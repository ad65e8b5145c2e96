"""A plan in a program that lives in pycuda: its context, its stream, its buffers.

Not run: no GPU was at hand. It is tested against a stand-in for pycuda. One batch at a time, by
the thread that opened it; `poan_runtime.engines.tensorrt.backend` is the faster one, and works
beside pycuda too.
"""

from typing import Any

import numpy as np
import pycuda.driver as pycuda

from poan_runtime.engines.backend import Backend, EngineOptions, OpenedBackend, Tiles
from poan_runtime.engines.nvidia import Gpu, device_index
from poan_runtime.engines.tensorrt.check import (
    check_gpu,
    check_header,
    check_version,
    engine_facts,
    read_plan,
)
from poan_runtime.engines.tensorrt.kernels import KernelCache
from poan_runtime.engines.tensorrt.library import load_library
from poan_runtime.engines.tensorrt.ports import Ports, deserialised, find_ports
from poan_runtime.errors import PoanError
from poan_runtime.models.find import Model


class PycudaBackend(Backend):
    """An engine in the context of its caller."""

    def __init__(self, context: Any, ports: Ports, cache: KernelCache) -> None:
        self._ports, self._context, self._cache = ports, context, cache
        self._stream = pycuda.Stream()
        shapes = ((ports.batch, *ports.row_in), (ports.batch, *ports.row_out))
        self._host = [pycuda.pagelocked_empty(shape, np.float32) for shape in shapes]
        self._device = [pycuda.mem_alloc(array.nbytes) for array in self._host]
        if not context.set_input_shape(ports.input, shapes[0]):
            raise PoanError(f"the engine takes no batch of shape {shapes[0]}")
        for name, memory in zip((ports.input, ports.output), self._device, strict=True):
            context.set_tensor_address(name, int(memory))
        size = context.update_device_memory_size_for_shapes()
        if size:
            self._device.append(pycuda.mem_alloc(size))
            context.set_device_memory(int(self._device[-1]), size)

    def run(self, batch: Tiles) -> Tiles:
        """See `Backend.run`. Fewer tiles than a full batch are filled up with the last one."""
        most = self._ports.batch
        parts = [self._run(batch[at : at + most]) for at in range(0, len(batch), most)]
        return np.concatenate(parts)

    def close(self) -> None:
        """Keep the kernels that were compiled and free what is ours; the context is not."""
        if self._context is not None:
            self._cache.save()
            self._context = None
            for memory in self._device:
                memory.free()

    def _run(self, batch: Tiles) -> Tiles:
        coarse, fine = self._host
        coarse[: len(batch)], coarse[len(batch) :] = batch, batch[-1]
        pycuda.memcpy_htod_async(self._device[0], coarse, self._stream)
        if not self._context.execute_async_v3(self._stream.handle):
            raise PoanError("the engine refused to run a batch")
        pycuda.memcpy_dtoh_async(fine, self._device[1], self._stream)
        self._stream.synchronize()
        answer: Tiles = fine[: len(batch)].copy()
        return answer


def open_backend(model: Model, options: EngineOptions) -> OpenedBackend:
    """Check and deserialise a plan in the current context of pycuda, or in the primary one."""
    library = load_library(engine_facts(model).flavour)
    check_version(model, library)
    plan = read_plan(model)
    check_header(model, plan, library, gpu=False)
    device = _device(options)
    gpu = _facts(device)
    notices = (*check_gpu(model, gpu), *check_header(model, plan, library, gpu=True))
    engine = deserialised(model, plan, library)
    cache = KernelCache(library, gpu, model.file.sha256)
    ports = find_ports(model, library, engine)
    return OpenedBackend(
        backend=PycudaBackend(cache.context(engine), ports, cache),
        name=options.backend,
        device=f"cuda:{gpu.index} ({gpu.name})",
        version=library.version,
        reason="it was asked for",
        notices=notices,
    )


def _device(options: EngineOptions) -> Any:
    """The device of the current context; without one, the primary context becomes current."""
    try:
        pycuda.init()
        if pycuda.Context.get_current() is None:
            pycuda.Device(device_index(options.device) or 0).retain_primary_context().push()
        return pycuda.Context.get_device()
    except pycuda.Error as error:
        raise PoanError(f"no GPU: {error}") from None


def _facts(device: Any) -> Gpu:
    major, minor = device.compute_capability()
    names = [pycuda.Device(index).pci_bus_id() for index in range(pycuda.Device.count())]
    version = pycuda.get_driver_version()
    return Gpu(
        index=names.index(device.pci_bus_id()),
        name=device.name(),
        compute_capability=f"{major}.{minor}",
        memory_bytes=device.total_memory(),
        sms=device.get_attribute(pycuda.device_attribute.MULTIPROCESSOR_COUNT),
        driver=f"{version // 1000}.{version % 1000 // 10}",
        runtime=".".join(map(str, pycuda.get_version()[:2])),
    )
