"""Extras for GPUs: each flavour and CUDA in one, with bounds that fit together."""

from importlib import metadata
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement

from poan_runtime.engines import nvidia
from poan_runtime.engines.backend import BACKENDS
from poan_runtime.engines.tensorrt.library import MODULES

Extras = dict[str, dict[str, Requirement]]
FLAVOURS = [f"{flavour}-{cuda}" for flavour in MODULES for cuda in ("cu12", "cu13")]


@pytest.fixture
def extras(repository: Path) -> Extras:
    """Requirements by extra and name, as pyproject.toml has them."""
    document = tomllib.loads((repository / "pyproject.toml").read_text())
    found: Extras = {}
    for extra, lines in document["project"]["optional-dependencies"].items():
        requirements = [Requirement(line) for line in lines]
        found[extra] = {requirement.name: requirement for requirement in requirements}
    return found


def test_every_extra_that_a_message_names_exists(
    extras: Extras, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {kind.extra for kind in BACKENDS.values() if "plan" not in kind.kinds}
    for cuda in (12080, 13000):
        driver = nvidia.Driver(cuda=cuda, gpus=("a card",))
        monkeypatch.setattr(nvidia, "find_driver", lambda driver=driver: driver)
        named |= {nvidia.fitting_extra(flavour) for flavour in MODULES}
    assert named <= set(extras)
    assert set(FLAVOURS) <= named
    assert not set(MODULES) & set(extras)  # one for every CUDA fits none


@pytest.mark.parametrize("extra", FLAVOURS)
def test_an_extra_has_the_package_of_its_name_and_a_cuda_python_of_its_cuda(
    extra: str, extras: Extras
) -> None:
    library, cuda = extras[extra][extra].specifier, extras[extra]["cuda-python"].specifier
    if extra.endswith("cu12"):
        # below 12.9.1 it holds the GIL while it waits; from 13 on it needs driver R580
        verdicts = [version in cuda for version in ("12.9.0", "12.9.1", "12.9.10", "13.0.0")]
        assert verdicts == [False, True, True, False]
    else:
        verdicts = [version in cuda for version in ("12.9.10", "13.0.0", "13.4.4", "14.0.0")]
        assert verdicts == [False, True, True, False]
    if extra.startswith("tensorrt-rtx"):  # EAGER kernels are there from 1.7 on
        assert [version in library for version in ("1.6", "1.7.1.116", "2.0")] == [
            False,
            True,
            False,
        ]
    else:
        assert [v in library for v in ("10.2", "11.4.0.106", "12.0")] == [False, True, False]


def test_onnxruntime_brings_the_cuda_libraries_that_it_loads(extras: Extras) -> None:
    """Alone it lacks libcublasLt; its own extras [cuda,cudnn] bring it."""
    wanted = extras["gpu"]["onnxruntime-gpu"]
    assert wanted.extras == {"cuda", "cudnn"}
    assert "onnxruntime" not in extras["gpu"]  # the two write into one folder


def test_what_is_installed_here_is_what_an_extra_asks_for(extras: Extras) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
    for name, wanted in extras["tensorrt-rtx-cu13"].items():
        assert metadata.version(name) in wanted.specifier
    declared = {Requirement(text).name for text in metadata.requires("tensorrt-rtx-cu13") or []}
    assert {"tensorrt_rtx_cu13_bindings", "tensorrt_rtx_cu13_libs"} <= declared
