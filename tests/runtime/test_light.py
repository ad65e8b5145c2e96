"""What is imported with what: looked up in fresh processes."""

import subprocess
import sys

import pytest

HEAVY = ("nibabel", "PIL", "pydicom", "ismrmrd")


def loaded_by(statement: str) -> set[str]:
    """Names of the modules that a fresh process holds after a statement."""
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module",
    [
        "engines.tensorrt.backend",
        "engines.verify",
        "engines.which_file",
        "tiles.run",
        "tiles.ensemble",
        "models.find",
    ],
)
def test_engines_models_and_tiles_load_no_image_library(module: str) -> None:
    if module == "engines.tensorrt.backend":
        pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx and cuda-python")
        pytest.importorskip("cuda.bindings", reason="needs tensorrt-rtx and cuda-python")
    loaded = loaded_by(f"import poan_runtime.{module}")
    assert f"poan_runtime.{module}" in loaded
    assert not loaded & set(HEAVY)


def test_the_package_alone_loads_neither_numpy_nor_nibabel() -> None:
    assert not loaded_by("import poan_runtime") & {"numpy", *HEAVY}


def test_importing_poan_takes_no_module_from_the_host_program() -> None:
    assert "openvino_telemetry" not in loaded_by("import poan_runtime")


def test_openvino_is_imported_without_its_telemetry_and_the_host_keeps_it() -> None:
    pytest.importorskip("openvino")
    loaded = loaded_by(
        "import types\n"
        "theirs = sys.modules['openvino_telemetry'] = types.ModuleType('openvino_telemetry')\n"
        "from poan_runtime.engines.openvino import library\n"
        "assert sys.modules['openvino_telemetry'] is theirs\n"
        "del sys.modules['openvino_telemetry']"
    )
    assert "openvino" in loaded


def test_a_hidden_module_is_missing_inside_and_back_after(monkeypatch: pytest.MonkeyPatch) -> None:
    library = pytest.importorskip("poan_runtime.engines.openvino.library")
    for name in ("json", "a_module_that_is_not_there"):
        before = sys.modules.get(name)
        with library.hidden(name), pytest.raises(ModuleNotFoundError):
            __import__(name)
        assert sys.modules.get(name) is before
        assert (name in sys.modules) == (before is not None)
