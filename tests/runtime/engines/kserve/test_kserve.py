"""Tiles on a KServe v2 server: the same voxels as here, and what happens where it fails."""

import json
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from poan_runtime.commands.run import main
from poan_runtime.engines.backend import EngineOptions
from poan_runtime.engines.kserve.address import Access, parse_address
from poan_runtime.engines.kserve.backend import connect
from poan_runtime.engines.kserve.hosts import Host, Hosts
from poan_runtime.engines.kserve.transport import Served, Transport, Unreachable
from poan_runtime.errors import PoanError
from poan_runtime.network import load_network
from poan_runtime.super_resolve import upscale
from tests.runtime.engines.conformance import check_backend
from tests.runtime.engines.kserve.served import Server, serving

HURRIED = EngineOptions(access=Access(patience_s=0.5))
TILE = np.random.default_rng(0).uniform(size=(3, 1, 16, 16)).astype(np.float32)


@pytest.fixture
def server(nearest_x2: Path) -> Server:
    return Server(nearest_x2)


@pytest.fixture
def address(server: Server) -> Iterator[str]:
    with serving(server) as (port, _):
        yield f"kserve://127.0.0.1:{port}/tiny"


def local(folder: Path, tiles: Any = TILE) -> Any:
    return load_network(folder).opened.backend.run(tiles)


def test_the_engine_does_what_every_engine_does(address: str) -> None:
    _, opened = connect(address, HURRIED)
    check_backend(opened.backend, tile=16, scale=2)


def test_a_scan_has_the_voxels_of_a_local_run(
    address: str, make_model: Any, make_scan: Any, server: Server
) -> None:
    scan = make_scan(shape=(40, 35, 5))
    server.network = load_network(make_model(smooth=True))
    with load_network(address) as network:
        there = upscale(scan, network)
    here = upscale(scan, server.network)
    assert np.array_equal(there.data, here.data)
    assert network.model.manifest.name == "tiny_x2"


def test_an_answer_in_json_is_read_as_well(address: str, nearest_x2: Path, server: Server) -> None:
    server.as_json = True
    _, opened = connect(address, HURRIED)
    assert np.array_equal(opened.backend.run(TILE), local(nearest_x2))
    opened.backend.close()


def test_several_batches_are_under_way_but_no_more_than_allowed(
    address: str, server: Server
) -> None:
    server.wait = 0.05
    _, opened = connect(address, HURRIED)
    waits = [opened.backend.start(TILE) for _ in range(20)]
    for wait in waits:
        wait()
    opened.backend.close()
    assert 2 <= server.most <= opened.backend.in_flight == 4


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_says_later_is_asked_again(
    status: int, address: str, server: Server, nearest_x2: Path
) -> None:
    _, opened = connect(address, EngineOptions(access=Access(patience_s=30)))
    server.fail = [status, status]
    assert np.array_equal(opened.backend.run(TILE), local(nearest_x2))
    opened.backend.close()
    assert server.fail == []


def test_a_batch_that_is_refused_is_not_sent_again(address: str, server: Server) -> None:
    _, opened = connect(address, HURRIED)
    server.fail = [400, 400]
    with pytest.raises(PoanError, match="the server answered 400: told to fail"):
        opened.backend.run(TILE)
    opened.backend.close()
    assert server.fail == [400]


def test_a_scan_outlives_the_death_of_one_of_two_hosts(
    nearest_x2: Path, make_scan: Any, server: Server
) -> None:
    scan = make_scan(shape=(80, 70, 12))
    other = Server(nearest_x2)
    with serving(server) as (kept, _), serving(other) as (lost, dying):
        network = load_network(f"kserve://127.0.0.1:{lost},127.0.0.1:{kept}/tiny")
        answer = other.infer

        def die_at_the_third(body: bytes, length: int) -> Any:
            if len(other.asked) >= 3:
                dying.server_close()
                raise ConnectionAbortedError
            return answer(body, length)

        other.infer = die_at_the_third  # type: ignore[method-assign]
        dying.handle_error = lambda *arguments: None  # type: ignore[method-assign]
        with network:
            there = upscale(scan, network)
    here = upscale(scan, nearest_x2)
    assert len(other.asked) >= 3
    assert len(server.asked) > 3
    assert np.array_equal(there.data, here.data)


@pytest.mark.slow
def test_a_server_gone_for_good_is_one_line_and_no_output(
    nearest_x2: Path, make_scan: Any, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = make_scan()
    with serving(server) as (port, _):
        server.fail = [503] * 10_000
        address = f"kserve://127.0.0.1:{port}/tiny"
        assert main([address, str(scan), "--patience", "0.3"]) == 2
    line = capsys.readouterr().err
    assert "the server answered 503: told to fail (tried for 0.3 s)" in line
    assert len(line.splitlines()) == 1
    assert main([address, str(scan), "--patience", "0.3"]) == 2
    assert capsys.readouterr().err == f"poan-run: {address}: Connection refused\n"
    assert sorted(path.name for path in scan.parent.glob("*.nii*")) == ["scan.nii.gz"]


def test_a_host_that_was_silent_at_first_is_asked_before_it_gets_tiles(
    nearest_x2: Path, server: Server, make_model: Any
) -> None:
    with serving(server) as (free, _):
        pass
    with serving(Server(nearest_x2)) as (port, _):
        model, opened = connect(f"kserve://127.0.0.1:{free},127.0.0.1:{port}/tiny", HURRIED)
        assert opened.device == "1 of 2 hosts"
        assert "Connection refused" in opened.notices[0]
        server.parameters["poan.manifest.1"] = (make_model(name="x") / "manifest.json").read_text()
        with serving(server, free):
            time.sleep(0.2)  # longer than its first pause
            answers = [opened.backend.start(TILE) for _ in range(20)]
            assert all(np.array_equal(wait(), local(nearest_x2)) for wait in answers)
        assert "serve different models" in opened.backend._hosts._hosts[0].lost
        opened.backend.close()
    assert model.manifest.name == "tiny_x2"
    assert server.asked == [], "it has answered, but for another model"


def test_without_a_manifest_one_line_asks_for_it(
    address: str, server: Server, nearest_x2: Path, make_model: Any
) -> None:
    server.parameters = {}
    with pytest.raises(PoanError, match=r"states no manifest .* add --manifest"):
        connect(address, HURRIED)
    model, opened = connect(address, EngineOptions(access=Access(manifest=nearest_x2)))
    assert model.notices == (f"{address}: states no hash; only tile and scale were compared",)
    opened.backend.close()
    for wrong in (make_model(tile=32), make_model(scale=3)):
        with pytest.raises(PoanError, match=r"expected (input|output) shape"):
            connect(address, EngineOptions(access=Access(manifest=wrong)))


def test_a_local_manifest_must_list_the_served_file(
    address: str, make_model: Any, nearest_x2: Path
) -> None:
    other = make_model(smooth=True)
    with pytest.raises(PoanError, match="which --manifest does not list"):
        connect(address, EngineOptions(access=Access(manifest=other)))
    _, opened = connect(address, EngineOptions(access=Access(manifest=nearest_x2)))
    opened.backend.close()


def test_a_file_that_failed_its_gate_is_refused(
    address: str, server: Server, make_manifest: Any
) -> None:
    failed = make_manifest("0" * 64, parity={"verdict": "fail", "checks": []})
    server.parameters["poan.manifest.1"] = json.dumps(failed)
    with pytest.raises(PoanError, match="parity verdict"):
        connect(address, HURRIED)


def test_a_static_plan_gets_full_batches(
    address: str, server: Server, make_manifest: Any, nearest_x2: Path
) -> None:
    manifest = make_manifest("0" * 64)
    manifest["files"][0] |= {
        "name": "engine.plan",
        "kind": "plan",
        "engine": {
            "flavour": "tensorrt",
            "version": "11.0",
            "compute_capabilities": ["8.6"],
            "builder_flags": [],
            "source_onnx_sha256": "0" * 64,
            "profile": {"min": 5, "opt": 5, "max": 5},
            "report": {},
        },
    }
    server.parameters = {
        "poan.manifest.1": json.dumps(manifest),
        "poan.file.1": "engine.plan",
    }
    _, opened = connect(address, HURRIED)
    assert np.array_equal(opened.backend.run(TILE), local(nearest_x2))
    opened.backend.close()
    assert server.asked == [(5, 1, 16, 16)]


def test_a_token_is_sent_to_this_machine_but_not_in_the_clear(
    address: str, server: Server, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("open sesame\n")
    access = Access(token=token, patience_s=0.5)
    connect(address, EngineOptions(access=access))[1].backend.close()
    assert server.headers[-1]["Authorization"] == "Bearer open sesame"
    with pytest.raises(PoanError, match="in the clear; use kserves"):
        connect("kserve://far.example/tiny", EngineOptions(access=access))


def pem(folder: Path, *arguments: str) -> None:
    command = ["openssl", *arguments]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem, and server.pem and client.pem with keys, that it vouches for."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make certificates")
    folder = tmp_path_factory.mktemp("pem")
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    pem(folder, "req", "-x509", *new, "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem")
    for name in ("server", "client"):
        signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "subjectAltName=IP:127.0.0.1"]
        pem(
            folder, "req", "-x509", *new, *signed, "-subj", f"/CN={name}",
            "-keyout", f"{name}.key", "-out", f"{name}.pem",
        )  # fmt: skip
    return folder


def test_tls_checks_the_server_and_shows_our_certificate(
    server: Server, nearest_x2: Path, certificates: Path
) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates / "ca.pem")
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    shown = {"certificate": certificates / "client.pem", "key": certificates / "client.key"}
    with serving(server, tls=tls) as (port, _):
        address = f"kserves://127.0.0.1:{port}/tiny"
        access = Access(ca=certificates / "ca.pem", **shown)
        _, opened = connect(address, EngineOptions(access=access))
        assert np.array_equal(opened.backend.run(TILE), local(nearest_x2))
        opened.backend.close()
        with pytest.raises(PoanError, match="its certificate does not hold"):
            connect(address, EngineOptions(access=Access(**shown)))
        with pytest.raises(PoanError, match="kserves://127"):
            connect(address, EngineOptions(access=Access(ca=certificates / "ca.pem")))


@pytest.mark.parametrize(
    "text", ["kserve://host", "kserve:///m", "kserve://h:x/m", "kserve://h/m/versions/a"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(PoanError, match="expected"):
        parse_address(text)


def test_an_address_in_full() -> None:
    found = parse_address("grpc://a,[::1]:9/t2_x2/versions/12")
    assert found.hosts == (("a", 8001), ("::1", 9))
    assert (found.model, found.version, str(found)) == (
        "t2_x2",
        "12",
        "grpc://a:8001,[::1]:9/t2_x2/versions/12",
    )


class Silent(Transport):
    def describe(self) -> Served:
        raise Unreachable("gone")

    infer = None  # type: ignore[assignment]

    def close(self) -> None:
        return None


def test_a_window_widens_while_batches_are_quick_and_narrows_when_they_wait() -> None:
    host = Host(Silent())
    for _ in range(5):
        host.answered(1.0, most=4)
    assert host.window == 4
    for _ in range(2):
        host.answered(2.5, most=4)
    assert host.window == 2
    host.failed()
    assert host.window == 1


def test_pauses_double_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    from poan_runtime.engines.kserve import hosts

    monkeypatch.setattr(hosts.time, "monotonic", lambda: 0.0)
    monkeypatch.setattr(hosts.random, "uniform", lambda low, high: 1.0)
    host, pauses = Host(Silent()), []
    for _ in range(8):
        host.failed()
        pauses.append(host.out_until)
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert Hosts([Silent()], most=1, patience_s=1, check=print)._hosts[0].failures == 0


def test_poan_run_writes_the_bytes_of_a_local_run(
    address: str, nearest_x2: Path, make_scan: Any, tmp_path: Path
) -> None:
    scan, there, here = make_scan(), tmp_path / "there.nii.gz", tmp_path / "here.nii.gz"
    report = tmp_path / "report.json"
    assert main([address, str(scan), "-o", str(there), "--report", str(report)]) == 0
    assert main([str(nearest_x2), str(scan), "-o", str(here)]) == 0
    assert there.read_bytes() == here.read_bytes()
    assert nib.load(there).shape == (40, 36, 5)
    assert json.loads(report.read_text())["backend"]["name"] == "kserve"
