"""Runs in Triton's Python backend, copied into a version as ``model.py``: poan's own engines.

Each request is one batch, which is run as it came: the answer is that of a local run. The
engine, its threads and its precision are poan's automatic choice on the server.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from poan_runtime.engines.backend import EngineOptions, open_backend
from poan_runtime.errors import PoanError
from poan_runtime.files import sha256_of
from poan_runtime.models.find import Model
from poan_runtime.models.manifest import read_manifest


class TritonPythonModel:
    """What Triton calls."""

    def initialize(self, arguments: dict[str, str]) -> None:
        """Load the version's file."""
        config = json.loads(arguments["model_config"])
        self._input, self._output = config["input"][0]["name"], config["output"][0]["name"]
        folder = Path(arguments["model_repository"]) / arguments["model_version"]
        self._backend = open_backend(model_in(folder), EngineOptions()).backend

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request; one that fails is answered with the reason."""
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        """Free the engine."""
        self._backend.close()

    def _answer(self, request: Any) -> Any:
        import triton_python_backend_utils as triton  # exists inside of Triton alone

        tiles = triton.get_input_tensor_by_name(request, self._input).as_numpy()
        try:
            answer = self._backend.run(np.ascontiguousarray(tiles, np.float32))
        except Exception as error:
            told = triton.TritonError(f"{type(error).__name__}: {error}")
            return triton.InferenceResponse(output_tensors=[], error=told)
        return triton.InferenceResponse(output_tensors=[triton.Tensor(self._output, answer)])


NAMES = {"onnx": "model.onnx", "plan": "model.plan"}
"""What Triton's backends call a model file, whatever the manifest calls it."""


def model_in(folder: Path) -> Model:
    """The file of a version that the manifest in it vouches for; found by its hash."""
    manifest = read_manifest(folder)
    for path in (folder / name for name in NAMES.values()):
        if path.is_file():
            digest = sha256_of(path)
            for file in manifest.files:
                if file.sha256 == digest:
                    return Model(manifest=manifest, file=file, path=path)
    raise PoanError(f"{folder}: no file in it is one that its manifest lists")
