"""``kserve://host:port,host:port/MODEL``: where a served model is, and how to be let in."""

import dataclasses
import re
from pathlib import Path

from poan_runtime.errors import PoanError

PORTS = {"kserve": 8000, "kserves": 443, "grpc": 8001, "grpcs": 443}
"""Schemes and the port of each: HTTP, HTTP in TLS, gRPC, gRPC in TLS."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Address:
    """A model on one or several hosts; version None is the newest that the server has."""

    scheme: str
    hosts: tuple[tuple[str, int], ...]
    model: str
    version: str | None = None

    @property
    def secure(self) -> bool:
        """Whether the connection is encrypted."""
        return self.scheme in ("kserves", "grpcs")

    def of(self, host: tuple[str, int]) -> str:
        """One host's part of it, for messages."""
        return f"{self.scheme}://{_bracketed(host[0])}:{host[1]}/{self.model}"

    def __str__(self) -> str:
        hosts = ",".join(f"{_bracketed(name)}:{port}" for name, port in self.hosts)
        version = f"/versions/{self.version}" if self.version else ""
        return f"{self.scheme}://{hosts}/{self.model}{version}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Access:
    """What a server asks for, and how long one that does not answer is waited for.

    ``manifest`` is a local folder (or file) for a server that does not state it; ``token`` a file
    that holds a bearer token; ``ca``, ``certificate`` and ``key`` are PEM files. ``timeout_s`` is
    the longest that one batch may take, ``patience_s`` how long a batch is tried anew while no
    host answers it.
    """

    manifest: Path | None = None
    token: Path | None = None
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    timeout_s: float = 120.0
    patience_s: float = 30.0

    def bearer(self) -> str | None:
        """The token itself, on one line."""
        if self.token is None:
            return None
        try:
            return self.token.read_text("ascii").strip()
        except (OSError, ValueError) as error:
            raise PoanError(f"{self.token}: expected a token: {error}") from None


NO_ACCESS = Access()
"""For a server that lets everybody in."""


def is_address(name: str | Path) -> bool:
    """Whether a model's name is an address.

    >>> is_address("kserve://localhost/t2_x2"), is_address("t2_x2")
    (True, False)
    """
    return str(name).partition("://")[0] in PORTS and "://" in str(name)


def parse_address(text: str) -> Address:
    """The parts of an address; PoanError where it is none.

    >>> str(parse_address("kserve://a,b:9000/t2_x2/versions/3"))
    'kserve://a:8000,b:9000/t2_x2/versions/3'
    """
    found = re.fullmatch(r"(\w+)://([^/]+)/([\w.-]+)(?:/versions/(\d+))?/?", text)
    if found is None:
        raise PoanError(f"{text}: expected {next(iter(PORTS))}://HOST:PORT[,HOST:PORT]/MODEL")
    scheme, hosts, model, version = found.groups()
    parsed = tuple(_host(host, PORTS[scheme], text) for host in hosts.split(","))
    return Address(scheme=scheme, hosts=parsed, model=model, version=version)


def _host(text: str, port: int, whole: str) -> tuple[str, int]:
    """``name``, ``name:port``, or an IPv6 address in brackets."""
    found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+)(?::(\d{1,5}))?", text)
    if found is None:
        raise PoanError(f"{whole}: expected HOST or HOST:PORT, got {text!r}")
    return found[1].strip("[]"), int(found[2] or port)


def _bracketed(name: str) -> str:
    return f"[{name}]" if ":" in name else name
