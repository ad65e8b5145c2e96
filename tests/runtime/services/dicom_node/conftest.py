"""A node's parts, a peer, a configuration."""

import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pynetdicom.association import Association
from pynetdicom.dul import DULServiceProvider

from poan_runtime.services.dicom_node.database import Database
from poan_runtime.services.dicom_node.outbox import Outbox
from poan_runtime.services.dicom_node.queue import Queue
from tests.runtime.services.dicom_node.peer import Archive, Running, until

THREADS = (Association, DULServiceProvider)
WriteConfig = Callable[..., Path]


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """pynetdicom leaves sockets to the garbage collector: their warnings are this test's."""
    yield
    until(lambda: not any(isinstance(t, THREADS) for t in threading.enumerate()), 10)
    gc.collect()


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "queue.db")


@pytest.fixture
def queue(database: Database) -> Queue:
    return Queue(database)


@pytest.fixture
def outbox(database: Database) -> Outbox:
    return Outbox(database)


@pytest.fixture
def archive() -> Iterator[Archive]:
    opened = Archive()
    yield opened
    opened.stop()


@pytest.fixture
def write_config(tmp_path: Path, nearest_x2: Path, archive: Archive) -> WriteConfig:
    """A `node.toml` with one rule and one peer; keywords are lines of its sections."""

    def write(name: str = "node.toml", **sections: str) -> Path:
        path = tmp_path / name
        path.write_text(
            f"""
storage = "node"
monitor_port = 0
[listen]
port = 0
least_free_mib = 0
timeout_s = 5.0
{sections.get("listen", "")}
[work]
quiet_s = 0.3
backend = "onnxruntime"
{sections.get("work", "")}
[send]
first_pause_s = 0.2
longest_pause_s = 0.5
{sections.get("send", "")}
[[peer]]
name = "pacs"
ae_title = "PACS"
host = "localhost"
port = {archive.port}
{sections.get("peer", "")}
[[rule]]
model = "{nearest_x2}"
targets = ["pacs"]
{sections.get("rule", "")}
{sections.get("more", "")}
"""
        )
        return path

    return write


@pytest.fixture
def run() -> Iterator[Callable[[Path], Running]]:
    """Start a node; it ends with the test."""
    started: list[Running] = []

    def start(config: Path) -> Running:
        started.append(Running(config))
        return started[-1]

    yield start
    for running in started:
        running.node.close(5.0)
