"""Execution contexts, and the kernels that tensorrt-rtx compiles for them and keeps.

tensorrt-rtx compiles when it first runs. One file per plan, library and GPU in the user's cache
folder holds the kernels; a file that does not fit is ignored by the library.
"""

import contextlib
import hashlib
from typing import Any

from poan_runtime.engines.nvidia import Gpu
from poan_runtime.engines.tensorrt.library import Library
from poan_runtime.errors import PoanError
from poan_runtime.files import WholeFile, cache_folder


class KernelCache:
    """Makes execution contexts of one engine, whose scratch memory the caller provides."""

    def __init__(self, library: Library, gpu: Gpu, plan_sha256: str) -> None:
        self.library = library
        name = f"{plan_sha256}-{library.version}-{gpu.name}-{gpu.compute_capability}"
        key = hashlib.sha256(name.encode()).hexdigest()[:24]
        self.path = cache_folder() / f"{library.flavour}-{key}.kernels"
        self._settings: dict[bool, Any] = {}
        self._kernels: Any = None
        self._loaded = b""

    def context(self, engine: Any, *, graphs: bool = True) -> Any:
        """A new execution context of the engine, without memory and silent to profilers.

        ``graphs`` false keeps tensorrt-rtx from capturing graphs of its own.
        """
        api = self.library.api
        if self.library.flavour == "tensorrt-rtx":
            if graphs not in self._settings:
                self._settings[graphs] = self._prepared(engine, graphs=graphs)
            context = engine.create_execution_context(self._settings[graphs])
        else:
            strategy = api.ExecutionContextAllocationStrategy.USER_MANAGED
            context = engine.create_execution_context(strategy)
        if context is None:
            raise PoanError(
                f"the engine cannot start on this GPU ({self.library.last_error()}); "
                "export it again with a smaller --vram"
            )
        context.nvtx_verbosity = api.ProfilingVerbosity.NONE
        return context

    def _prepared(self, engine: Any, *, graphs: bool) -> Any:
        """How tensorrt-rtx is to run: graphs of its own, and the final kernels from the start.

        By default fallback kernels answer first and specialised ones later, so that two runs
        differ, and what was verified is not what runs.
        """
        api, settings = self.library.api, engine.create_runtime_config()
        strategies = api.CudaGraphStrategy
        settings.cuda_graph_strategy = (
            strategies.WHOLE_GRAPH_CAPTURE if graphs else strategies.DISABLED
        )
        settings.dynamic_shapes_kernel_specialization_strategy = (
            api.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        settings.set_execution_context_allocation_strategy(
            api.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        if self._kernels is None:
            self._kernels = settings.create_runtime_cache()
            with contextlib.suppress(OSError):
                self._loaded = self.path.read_bytes()
                self._kernels.deserialize(self._loaded)
        settings.set_runtime_cache(self._kernels)
        return settings

    def save(self) -> None:
        """Write the compiled kernels, if there are new ones.

        Where the folder cannot be written the next start is slower, and nothing else is lost.
        """
        if self._kernels is None:
            return
        kernels = bytes(self._kernels.serialize())
        if kernels != self._loaded:
            with contextlib.suppress(PoanError), WholeFile(self.path) as file:
                file.write(kernels)
            self._loaded = kernels
