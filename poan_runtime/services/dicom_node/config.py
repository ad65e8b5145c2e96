"""`node.toml`: who we are, who may come in, which model a series gets, and where results go.

Every key is known and typed; what is not is one line that names it.
"""

import dataclasses
import re
import sys
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from poan_runtime.errors import PoanError
from poan_runtime.files import reading
from poan_runtime.services.dicom_node.queue import Retry

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Part = TypeVar("Part")
LONGEST_TITLE = 16
KINDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tls:
    """PEM files. Peers must show a certificate that ``ca`` signed, and are shown ours."""

    certificate: str
    key: str
    ca: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listen:
    """Our own application entity. Empty lists let everyone in.

    With ``commitment`` we promise to keep images when asked, and then keep them.
    """

    ae_title: str = "POAN"
    host: str = "127.0.0.1"
    port: int = 11112
    tls: bool = False
    commitment: bool = False
    allowed_titles: tuple[str, ...] = ()
    allowed_addresses: tuple[str, ...] = ()
    most_associations: int = 16
    most_per_address: int = 8
    timeout_s: float = 30.0
    largest_mib: int = 512
    least_free_mib: int = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """When a series is complete, and how it is super-resolved."""

    quiet_s: float = 10.0
    trust_count: bool = False
    workers: int = 1
    backend: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    threads: int = 0
    longest_s: float = 3600.0
    keep_hours: float = 24.0
    attempts: int = 5
    uid_root: str = ""
    burn_in: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Send:
    """How sending is tried again, and how long a peer may take to answer for its storage."""

    first_pause_s: float = 5.0
    longest_pause_s: float = 600.0
    attempts: int = 150
    commitment_s: float = 300.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peer:
    """Where results go. With ``commitment`` it is asked to keep them, in so many words."""

    name: str
    ae_title: str
    host: str
    port: int
    tls: bool = False
    commitment: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """Which series get a model; what is not said fits all, and the first rule that fits counts.

    ``description``, ``protocol``, ``sequence`` are regular expressions, found anywhere, in upper
    or lower case; ``rows`` and ``columns`` are least and most.
    """

    model: str
    targets: tuple[str, ...]
    description: str = ""
    protocol: str = ""
    sequence: str = ""
    modality: str = ""
    sender: str = ""
    rows: tuple[int, ...] = ()
    columns: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The whole file."""

    storage: Path
    listen: Listen
    work: Work
    send: Send
    peers: tuple[Peer, ...]
    rules: tuple[Rule, ...]
    tls: Tls | None = None
    monitor_port: int = 9104

    @property
    def job_retry(self) -> Retry:
        """Of super-resolving."""
        return Retry(attempts=self.work.attempts)

    @property
    def send_retry(self) -> Retry:
        """Of sending."""
        return Retry(
            first_pause_s=self.send.first_pause_s,
            longest_pause_s=self.send.longest_pause_s,
            attempts=self.send.attempts,
        )

    def peer(self, name: str) -> Peer:
        """The peer of that name, which a rule has."""
        return next(peer for peer in self.peers if peer.name == name)


SECTIONS = ("listen", "work", "send", "tls", "peer", "rule")


def read_config(path: Path) -> Config:
    """The configuration; PoanError names the first key that is wrong."""
    with reading(path), path.open("rb") as file:
        try:
            document = tomllib.load(file)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise PoanError(f"{path}: not TOML: {error}") from None
    try:
        return _config(document, path.parent)
    except PoanError as error:
        raise PoanError(f"{path}: {error}") from None


def _config(document: dict[str, Any], folder: Path) -> Config:
    top = {key: value for key, value in document.items() if key not in SECTIONS}
    for key in top:
        if key not in ("storage", "monitor_port"):
            raise PoanError(f"{key}: no such key; expected storage, monitor_port or a section")
    if not isinstance(top.get("storage"), str):
        raise PoanError("storage: expected the path of a folder")
    tls = document.get("tls")
    config = Config(
        storage=(folder / top["storage"]).resolve(),
        monitor_port=_checked(top.get("monitor_port", 9104), int, "monitor_port"),
        listen=_part(Listen, document.get("listen", {}), "listen"),
        work=_part(Work, document.get("work", {}), "work"),
        send=_part(Send, document.get("send", {}), "send"),
        tls=None if tls is None else _tls(tls, folder),
        peers=_parts(Peer, document, "peer"),
        rules=_parts(Rule, document, "rule"),
    )
    _check(config)
    return config


def _tls(table: Any, folder: Path) -> Tls:
    tls = _part(Tls, table, "tls")
    paths = {f.name: str(folder / getattr(tls, f.name)) for f in dataclasses.fields(tls)}
    return Tls(**paths)


def _parts(kind: type[Part], document: dict[str, Any], name: str) -> tuple[Part, ...]:
    tables = document.get(name, [])
    if not isinstance(tables, list) or not tables:
        raise PoanError(f"[[{name}]]: expected at least one")
    return tuple(_part(kind, table, f"{name} {n}") for n, table in enumerate(tables, 1))


def _part(kind: type[Part], table: Any, where: str) -> Part:
    """A section as its dataclass."""
    if not isinstance(table, dict):
        raise PoanError(f"[{where}]: expected a section")
    hints = typing.get_type_hints(kind)
    for key in table:
        if key not in hints:
            raise PoanError(f"[{where}] {key}: no such key; expected {', '.join(hints)}")
    fields: Any = dataclasses.fields(kind)  # type: ignore[arg-type]
    for field in fields:
        if field.default is dataclasses.MISSING and field.name not in table:
            raise PoanError(f"[{where}] {field.name}: is missing")
    given = {key: _checked(value, hints[key], f"[{where}] {key}") for key, value in table.items()}
    return kind(**given)


def _checked(value: Any, hint: Any, where: str) -> Any:
    if typing.get_origin(hint) is tuple:
        (kind, _) = typing.get_args(hint)
        if not isinstance(value, list):
            raise PoanError(f"{where}: expected a list, got {value!r}")
        return tuple(_checked(one, kind, where) for one in value)
    assert not isinstance(hint, types.UnionType), "a section has no such field"
    fits = isinstance(value, (int, float) if hint is float else hint)
    if not fits or (isinstance(value, bool) and hint is not bool):
        raise PoanError(f"{where}: expected {KINDS[hint]}, got {value!r}")
    return float(value) if hint is float else value


def _check(config: Config) -> None:
    """What must fit together."""
    _check_titles(config)
    names = [peer.name for peer in config.peers]
    if len(set(names)) < len(names):
        raise PoanError("[[peer]] name: two peers have one name")
    for n, rule in enumerate(config.rules, 1):
        _check_rule(rule, f"rule {n}", names)
    for key in ("quiet_s", "workers", "attempts", "longest_s", "keep_hours"):
        if getattr(config.work, key) <= 0:
            raise PoanError(f"[work] {key}: expected more than 0")
    if config.send.attempts <= 0 or config.send.first_pause_s <= 0:
        raise PoanError("[send] attempts and first_pause_s: expected more than 0")
    if re.fullmatch(r"(\d+\.)*\d*", config.work.uid_root) is None:
        raise PoanError(f"[work] uid_root: expected digits and dots, got {config.work.uid_root}")
    if config.tls is None and (config.listen.tls or any(peer.tls for peer in config.peers)):
        raise PoanError("[tls]: is missing, and [listen] or a peer asks for it")


def _check_titles(config: Config) -> None:
    for title in (config.listen.ae_title, *(peer.ae_title for peer in config.peers)):
        if not 1 <= len(title.strip()) <= LONGEST_TITLE or not title.isascii():
            raise PoanError(f"ae_title: expected 1 to 16 ASCII characters, got {title!r}")
    for port in (config.listen.port, config.monitor_port, *(peer.port for peer in config.peers)):
        if not 0 <= port < 1 << 16:
            raise PoanError(f"port: expected 0 to 65535, got {port}")


def _check_rule(rule: Rule, where: str, peers: list[str]) -> None:
    for target in rule.targets:
        if target not in peers:
            raise PoanError(f"[{where}] targets: {target}: no [[peer]] has this name")
    if not rule.targets:
        raise PoanError(f"[{where}] targets: expected at least one peer")
    for key in ("description", "protocol", "sequence"):
        try:
            re.compile(getattr(rule, key))
        except re.error as error:
            raise PoanError(f"[{where}] {key}: not a regular expression: {error}") from None
    for key in ("rows", "columns"):
        if len(getattr(rule, key)) not in (0, 2):
            raise PoanError(f"[{where}] {key}: expected [least, most]")
