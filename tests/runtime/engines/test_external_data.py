"""Weights outside of the model's folder are not read, whatever the graph says."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from poan_runtime.engines.backend import EngineOptions, open_backend
from poan_runtime.errors import PoanError
from poan_runtime.models.find import Trust, find_model
from tests.tiny.models import IDENTITY, graph


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("location", ["../outside.bin", "{outside}", "link.bin"])
def test_weights_outside_of_the_folder_are_refused_in_one_line(
    backend: str, location: str, tmp_path: Path
) -> None:
    pytest.importorskip(backend)
    outside = tmp_path / "outside.bin"
    outside.write_bytes(IDENTITY.astype(np.float32).tobytes())
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.bin").symlink_to(outside)
    model = graph(2, 16, IDENTITY)
    weights = model.graph.initializer[0]
    weights.ClearField("float_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    entries = {"location": location.format(outside=outside), "offset": "0", "length": "36"}
    for key, value in entries.items():
        entry = weights.external_data.add()
        entry.key, entry.value = key, value
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    found = find_model(folder / "model.onnx", Trust(scale=2, tile=16))
    with pytest.raises(PoanError, match="cannot load it") as refused:
        open_backend(found, EngineOptions(backend=backend, threads=1))
    assert "\n" not in str(refused.value)
