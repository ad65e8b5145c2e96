"""`poan-export --triton`: model repositories, and a real Triton that serves them."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from poan_export.cli import main
from poan_export.triton import Serving, add_version
from poan_runtime.commands.run import main as poan_run
from poan_runtime.errors import PoanError
from poan_runtime.models.find import find_model
from poan_runtime.network import load_network
from tests.runtime.engines.conformance import check_backend
from tests.runtime.engines.kserve.triton import Triton, environment, serving

TO_JSON = """
import json, sys
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2
text = open(sys.argv[1]).read()
found = text_format.Parse(text, model_config_pb2.ModelConfig())
print(json_format.MessageToJson(found, preserving_proto_field_name=True))
"""


def parsed(config: Path) -> dict[str, Any]:
    """``config.pbtxt`` as Triton's own protobuf reads it."""
    python = environment() / "bin/python"
    told = subprocess.run([python, "-c", TO_JSON, config], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    found: dict[str, Any] = json.loads(told.stdout)
    return found


def planned(folder: Path, least: int, most: int) -> Path:
    """An export whose second file is a "plan" for batches of ``least`` to ``most``."""
    document = json.loads((folder / "manifest.json").read_text())
    entry = {
        **document["files"][0],
        "name": "engine.plan",
        "kind": "plan",
        "engine": {
            "flavour": "tensorrt",
            "version": "11.0",
            "compute_capabilities": ["8.6"],
            "builder_flags": [],
            "source_onnx_sha256": "0" * 64,
            "profile": {"min": least, "opt": most, "max": most},
            "report": {},
        },
    }
    document["files"] = [document["files"][0], entry]
    (folder / "manifest.json").write_text(json.dumps(document))
    (folder / "engine.plan").write_bytes((folder / "model.onnx").read_bytes())
    return folder / "engine.plan"


@pytest.mark.integration
def test_triton_reads_what_the_configuration_says(make_model: Any, tmp_path: Path) -> None:
    folder = make_model(training={"note": 'a "quoted"\nline \\ with ü'})
    assert add_version(folder, tmp_path, Serving(instances=2)) == tmp_path / "tiny_x2/1"
    found = parsed(tmp_path / "tiny_x2/config.pbtxt")
    assert (found["name"], found["backend"], found["max_batch_size"]) == (
        "tiny_x2",
        "onnxruntime",
        32,
    )
    assert found["input"] == [{"name": "lr", "data_type": "TYPE_FP32", "dims": ["1", "16", "16"]}]
    assert found["output"][0]["dims"] == ["1", "32", "32"]
    assert found["instance_group"] == [{"count": 2}]  # KIND_AUTO, the default
    assert found["dynamic_batching"]["preferred_batch_size"] == [8]
    assert found["model_warmup"][0]["batch_size"] == 8
    stated = json.loads(found["parameters"]["poan.manifest.1"]["string_value"])
    assert stated == json.loads((folder / "manifest.json").read_text())


@pytest.mark.integration
@pytest.mark.parametrize(("least", "most", "batcher"), [(1, 8, True), (4, 4, False)])
def test_a_plan_gets_a_batcher_only_if_it_takes_single_tiles(
    least: int, most: int, batcher: bool, make_model: Any, tmp_path: Path
) -> None:
    add_version(planned(make_model(), least, most), tmp_path)
    found = parsed(tmp_path / "tiny_x2/config.pbtxt")
    assert found["platform"] == "tensorrt_plan"
    assert found["instance_group"] == [{"count": 1, "kind": "KIND_GPU"}]
    assert ("dynamic_batching" in found) == batcher
    assert found.get("max_batch_size", 0) == (most if batcher else 0)
    dims = found["input"][0]["dims"]
    assert dims == (["1", "16", "16"] if batcher else ["4", "1", "16", "16"])
    (warm,) = found["model_warmup"]
    assert warm["batch_size"] == (most if batcher else 1)
    assert warm["inputs"]["lr"]["dims"] == dims
    assert (tmp_path / "tiny_x2/1/model.plan").is_file()


def test_versions_stand_side_by_side(make_model: Any, tmp_path: Path) -> None:
    old, new = make_model(), make_model(smooth=True)
    add_version(old, tmp_path)
    assert add_version(new, tmp_path).name == "2"
    assert add_version(new, tmp_path, version=7).name == "7"
    served = [(tmp_path / f"tiny_x2/{n}/model.onnx").read_bytes() for n in (1, 2, 7)]
    assert served[0] == (old / "model.onnx").read_bytes()
    assert served[1] == served[2] == (new / "model.onnx").read_bytes()
    config = (tmp_path / "tiny_x2/config.pbtxt").read_text()
    assert [f'"poan.manifest.{n}"' in config for n in (1, 2, 3, 7)] == [True, True, False, True]
    with pytest.raises(PoanError, match="version 2 exists"):
        add_version(new, tmp_path, version=2)


def test_a_version_of_another_size_is_refused_and_leaves_nothing(
    make_model: Any, tmp_path: Path
) -> None:
    add_version(make_model(), tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(PoanError, match="its versions differ"):
        add_version(make_model(tile=32), tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_export_whose_hash_is_wrong_is_refused(
    make_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_model()
    (folder / "model.onnx").write_bytes(b"something else")
    assert main(["--export", str(folder), "--triton", str(tmp_path / "repo")]) == 2
    line = capsys.readouterr().err
    assert "expected sha256" in line
    assert len(line.splitlines()) == 1
    assert not (tmp_path / "repo").exists()


@pytest.fixture(scope="module")
def repository(make_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of a model, to be run by poan's engines; the second blurs."""
    folder = tmp_path_factory.mktemp("models")
    for smooth in (False, True):
        export = make_model(smooth=smooth)
        assert main(["--export", str(export), "--triton", str(folder), "--triton-python"]) == 0
    return folder


@pytest.fixture(scope="module")
def packages() -> Path:
    return next(folder for folder in Path(__file__).parents if (folder / "poan_runtime").is_dir())


@pytest.fixture(scope="module")
def triton(
    repository: Path, packages: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Triton]:
    with serving(repository, tmp_path_factory.mktemp("triton"), packages) as server:
        yield server


@pytest.mark.integration
def test_a_real_triton_answers_as_the_local_engine(
    triton: Triton, repository: Path, make_scan: Any, tmp_path: Path
) -> None:
    scan = str(make_scan(shape=(70, 60, 7)))
    for version, asked in ((1, "/versions/1"), (2, "/versions/2"), (2, "")):
        there, here = tmp_path / "there.nii.gz", tmp_path / "here.nii.gz"
        address = f"kserve://127.0.0.1:{triton.http}/tiny_x2{asked}"
        assert poan_run([address, scan, "-o", str(there), "--overwrite"]) == 0
        local = repository / f"tiny_x2/{version}/model.onnx"
        again = ["--overwrite", "--backend", "onnxruntime"]
        assert poan_run([str(local), scan, "-o", str(here), *again]) == 0
        assert there.read_bytes() == here.read_bytes()


@pytest.mark.integration
def test_a_real_triton_does_what_every_engine_does(triton: Triton) -> None:
    network = load_network(f"kserve://127.0.0.1:{triton.http}/tiny_x2")
    check_backend(network.opened.backend, tile=16, scale=2)


@pytest.mark.integration
def test_grpc_brings_the_same_bytes(
    triton: Triton, repository: Path, packages: Path, make_scan: Any, tmp_path: Path
) -> None:
    scan, there, here = make_scan(), tmp_path / "there.nii.gz", tmp_path / "here.nii.gz"
    python = environment() / "bin/python"
    command = [python, "-m", "poan_runtime.commands.run", f"grpc://127.0.0.1:{triton.grpc}/tiny_x2"]
    found = subprocess.run(
        [*command, scan, "-o", there],
        env={**os.environ, "PYTHONPATH": str(packages)},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    local = repository / "tiny_x2/2/model.onnx"
    assert poan_run([str(local), str(scan), "-o", str(here), "--backend", "onnxruntime"]) == 0
    assert there.read_bytes() == here.read_bytes()
    missing = subprocess.run(
        [*command[:-1], f"grpc://127.0.0.1:{triton.grpc}/none", scan, "-o", tmp_path / "no.nii.gz"],
        env={**os.environ, "PYTHONPATH": str(packages)},
        capture_output=True,
        text=True,
    )
    assert missing.returncode == 2
    assert len(missing.stderr.splitlines()) == 1
    assert "none" in missing.stderr


@pytest.mark.integration
def test_a_scan_outlives_a_real_triton_that_is_killed(
    triton: Triton,
    repository: Path,
    packages: Path,
    make_scan: Any,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    scan = str(make_scan(shape=(400, 400, 40)))
    there, here = tmp_path / "there.nii.gz", tmp_path / "here.nii.gz"
    with serving(repository, tmp_path_factory.mktemp("second"), packages) as second:
        address = f"kserve://127.0.0.1:{second.http},127.0.0.1:{triton.http}/tiny_x2"
        network = load_network(address)
        hosts = network.opened.backend._hosts  # type: ignore[attr-defined]
        network.close()
        assert len(hosts._hosts) == 2

        def kill_in_the_middle() -> None:
            partial = tmp_path.glob(".there.nii.gz.*")
            while not any(path.stat().st_size > 1 << 16 for path in partial):
                time.sleep(0.005)
                partial = tmp_path.glob(".there.nii.gz.*")
            second.process.kill()

        killer = threading.Thread(target=kill_in_the_middle, daemon=True)
        killer.start()
        assert poan_run([address, scan, "-o", str(there)]) == 0
        killer.join(timeout=1)
        assert not killer.is_alive(), "the scan was over before the server was killed"
    local = repository / "tiny_x2/2/model.onnx"
    assert poan_run([str(local), scan, "-o", str(here), "--backend", "onnxruntime"]) == 0
    assert np.array_equal(
        np.frombuffer(there.read_bytes(), np.uint8), np.frombuffer(here.read_bytes(), np.uint8)
    )


def test_the_served_file_is_found_by_its_hash(make_model: Any, tmp_path: Path) -> None:
    from poan_export.triton_model import model_in

    plan = planned(make_model(), 1, 8)
    version = add_version(plan, tmp_path)
    assert model_in(version).file.sha256 == find_model(plan).file.sha256
    (version / "model.plan").write_bytes(b"x")
    with pytest.raises(PoanError, match="no file in it"):
        model_in(version)
