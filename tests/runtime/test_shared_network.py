"""One network in many threads, after a fork, and for many scans."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import poan_runtime
from poan_runtime.engines.backend import EngineOptions
from poan_runtime.errors import PoanError


def volume(seed: int) -> poan_runtime.Volume:
    data = np.random.default_rng(seed).uniform(0, 900, (40, 36, 4)).astype(np.float32)
    return poan_runtime.Volume(data=data, affine=np.diag([1.0, 1.0, 4.0, 1.0]))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_one_network_in_eight_threads_answers_bit_for_bit_as_alone(
    backend: str, make_model: Any
) -> None:
    pytest.importorskip(backend)
    model = make_model(smooth=True)
    volumes = [volume(seed) for seed in range(8)]
    with poan_runtime.load_network(model, EngineOptions(backend=backend, threads=2)) as network:
        alone = [poan_runtime.upscale(one, network).data for one in volumes]
        with ThreadPoolExecutor(8) as pool:
            for _ in range(3):
                found = pool.map(lambda one: poan_runtime.upscale(one, network).data, volumes)
                assert all(map(np.array_equal, found, alone))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_network_is_refused_with_one_line_after_a_fork(nearest_x2: Path) -> None:
    with poan_runtime.load_network(nearest_x2) as network:
        poan_runtime.upscale(volume(0), network)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            signal.alarm(30)  # an engine without its threads would wait for ever
            try:
                poan_runtime.upscale(volume(0), network)
                said = "ran"
            except PoanError as error:
                said = str(error)
            os.write(write, said.encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            said = pipe.read()
        os.waitpid(child, 0)
    assert "load the network in the new process" in said
    assert "\n" not in said


def test_many_scans_leave_no_file_open(nearest_x2: Path, make_scan: Any, tmp_path: Path) -> None:
    scan = make_scan("scan.nii.gz")
    with poan_runtime.load_network(nearest_x2) as network:
        counts = []
        for _ in range(12):
            poan_runtime.upscale_file(scan, tmp_path / "out.nii.gz", network)
            counts.append(len(os.listdir("/proc/self/fd")))
    assert counts[-1] == counts[1]
