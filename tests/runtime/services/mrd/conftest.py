"""A server of a tiny network, and what it said."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from poan_runtime.network import Network, load_network
from poan_runtime.services.mrd.finer import Way
from poan_runtime.services.mrd.serve import Server

HERE = "127.0.0.1"
Serve = Callable[..., int]


@pytest.fixture
def network(nearest_x2: Path) -> Iterator[Network]:
    with load_network(nearest_x2) as loaded:
        yield loaded


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def serve(network: Network, said: list[str]) -> Iterator[Serve]:
    """Start a server; keywords are those of `Way`; gives the port."""
    servers: list[Server] = []

    def start(with_network: Network | None = None, **way: Any) -> int:
        server = Server(with_network or network, Way(**way), (HERE, 0), say=said.append)
        threading.Thread(target=server.run, daemon=True).start()
        servers.append(server)
        return server.port

    yield start
    for server in servers:
        server.close()
