"""The node between DCMTK's storescu and a real Orthanc."""

import json
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.images.dicom.made import faults, program, write
from tests.runtime.services.dicom_node.conftest import WriteConfig
from tests.runtime.services.dicom_node.peer import HERE, Running, free_port, images, until

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Orthanc:
    """A server with nothing in it, on free ports; it knows the node by its title."""

    def __init__(self, folder: Path, node_port: int) -> None:
        self.dicom_port, self._http_port = free_port(), free_port()
        poan = {"AET": "POAN", "Host": HERE, "Port": node_port, "AllowStorageCommitment": True}
        settings = {
            "DicomAet": "PACS",
            "DicomPort": self.dicom_port,
            "HttpPort": self._http_port,
            "AuthenticationEnabled": False,
            "StorageDirectory": str(folder / "orthanc"),
            "IndexDirectory": str(folder / "orthanc"),
            "DicomModalities": {"poan": poan},
            "Plugins": [],
        }
        config = folder / "orthanc.json"
        config.write_text(json.dumps(settings))
        self._process = subprocess.Popen(
            [orthanc_program(), str(config)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        assert until(self._is_up)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self._url(path), timeout=30) as answer:
            return json.loads(answer.read())

    def file(self, instance: str, to: Path) -> Path:
        with urllib.request.urlopen(self._url(f"/instances/{instance}/file")) as answer:
            to.write_bytes(answer.read())
        return to

    def post(self, path: str, body: Any) -> Any:
        request = urllib.request.Request(self._url(path), json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)

    def _url(self, path: str) -> str:
        return f"http://{HERE}:{self._http_port}{path}"

    def _is_up(self) -> bool:
        try:
            return bool(self.get("/system"))
        except OSError:
            return False


def orthanc_program() -> str:
    """Debian's Orthanc lies in a folder that is not on everybody's path."""
    found = Path("/usr/sbin/Orthanc")
    return str(found) if found.exists() else program("Orthanc")


@pytest.fixture
def node_port() -> int:
    return free_port()


@pytest.fixture
def orthanc(tmp_path: Path, node_port: int) -> Iterator[Orthanc]:
    opened = Orthanc(tmp_path, node_port)
    yield opened
    opened.close()


@pytest.fixture
def running(
    run: Callable[[Path], Running], write_config: WriteConfig, node_port: int, orthanc: Orthanc
) -> Running:
    """A node whose peer is Orthanc, which is asked for its commitment."""
    path = write_config(listen="commitment = true", peer="commitment = true")
    head, peer = path.read_text().split("[[peer]]")
    head = head.replace("[listen]\nport = 0", f"[listen]\nport = {node_port}")
    lines = [f"port = {orthanc.dicom_port}" if "port = " in x else x for x in peer.splitlines()]
    path.write_text("\n".join([head, "[[peer]]", *lines]))
    return run(path)


def test_storescu_to_node_to_orthanc_and_orthanc_keeps_it(
    running: Running, orthanc: Orthanc, node_port: int, tmp_path: Path
) -> None:
    files = [str(write(ds, tmp_path / f"{n}.dcm")) for n, ds in enumerate(images(4))]
    line = [program("storescu"), "-aec", "POAN", HERE, str(node_port), *files]
    assert subprocess.run(line, capture_output=True).returncode == 0
    assert running.until(lambda: running.node.queue.jobs("done") != [])
    assert running.events("commitment told")[0]["kept"] == 4
    fine = [orthanc.file(i, tmp_path / f"fine{i}.dcm") for i in orthanc.get("/instances")]
    assert len(fine) == 4
    if "/usr" in program("dciodvfy"):
        assert faults(fine) == set()


def test_orthanc_sends_a_series_and_is_told_that_the_node_keeps_it(
    running: Running, orthanc: Orthanc, tmp_path: Path
) -> None:
    files = [str(write(ds, tmp_path / f"{n}.dcm")) for n, ds in enumerate(images(3))]
    line = [program("storescu"), "-aec", "PACS", HERE, str(orthanc.dicom_port), *files]
    assert subprocess.run(line, capture_output=True).returncode == 0
    series = orthanc.get("/series")[0]
    sent = orthanc.post("/modalities/poan/store", series)
    assert sent["FailedInstancesCount"] == 0
    asked = orthanc.post(
        "/modalities/poan/storage-commitment",
        {"DicomInstances": [[str(d.SOPClassUID), str(d.SOPInstanceUID)] for d in images(4)]},
    )
    assert running.until(lambda: orthanc.get(asked["Path"])["Status"] != "Pending")
    report = orthanc.get(asked["Path"])
    assert len(report["Success"]) == 3
    assert [f["SOPInstanceUID"] for f in report["Failures"]] == [str(images(4)[3].SOPInstanceUID)]
    assert running.until(lambda: len(orthanc.get("/instances")) == 6)
    assert len(orthanc.get("/series")) == 2
