"""A network on one or several servers, as a `Backend`; nothing runs before all is checked."""

import contextlib
import json
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from poan_runtime import extras
from poan_runtime.engines.backend import Backend, EngineOptions, OpenedBackend
from poan_runtime.engines.kserve.address import Access, Address, parse_address
from poan_runtime.engines.kserve.hosts import Hosts
from poan_runtime.engines.kserve.http import HttpTransport
from poan_runtime.engines.kserve.transport import (
    Refused,
    Served,
    Tiles,
    Transport,
    Unreachable,
)
from poan_runtime.errors import PoanError
from poan_runtime.models.find import Model
from poan_runtime.models.manifest import Manifest, ModelFile, parse_manifest, read_manifest

MANIFEST_PARAMETER = "poan.manifest"
"""Triton's parameter that holds a version's manifest as JSON, ``poan.manifest.VERSION``."""
FILE_PARAMETER = "poan.file"
"""Triton's parameter that names the file of a version, as its manifest lists it."""
MOST_BYTES = 1 << 28
"""Bytes of tiles and answers that may be under way."""
MOST_ON_A_HOST = 4


class KserveBackend(Backend):
    """Batches on servers; ``full`` is the only batch size that they take, if there is one."""

    fills_batches = True
    """A server's engine may answer a tile otherwise in a batch of another size."""

    def __init__(self, hosts: Hosts, in_flight: int, full: int | None) -> None:
        self._hosts = hosts
        self.in_flight = in_flight
        self._full = full
        self._pool = ThreadPoolExecutor(in_flight, thread_name_prefix="poan-kserve")

    def run(self, batch: Tiles) -> Tiles:
        """See `Backend.run`."""
        return self.start(batch)()

    def start(self, batch: Tiles) -> Callable[[], Tiles]:
        """Send a batch at once, or as soon as fewer than ``in_flight`` are under way."""
        answer = self._pool.submit(self._answer, batch.copy())
        return answer.result

    def close(self) -> None:
        """Give up what is under way."""
        self._pool.shutdown(cancel_futures=True)
        self._hosts.close()

    def _answer(self, batch: Tiles) -> Tiles:
        count = len(batch)
        if self._full is not None:
            batch = batch[np.minimum(np.arange(self._full), count - 1)]
        answer = self._hosts.answer(batch)
        if answer.shape[:2] != (len(batch), 1):
            raise PoanError(f"the server answered shape {answer.shape} to {len(batch)} tiles")
        return np.ascontiguousarray(answer[:count])


def connect(name: str, options: EngineOptions) -> tuple[Model, OpenedBackend]:
    """The model at an address and the backend that reaches it.

    Asks every host before the first tile: at least one must answer, and all that do must serve
    the same file with the manifest's tile and scale.
    """
    address, access = parse_address(name), options.access
    _check_token(address, access)
    transports = [_transport(address, host, access) for host in address.hosts]
    with contextlib.ExitStack() as unless_all_is_well:
        for transport in transports:
            unless_all_is_well.callback(transport.close)
        answers, silent = _ask_all(transports)
        first = next(iter(answers.values()))
        model = served_model(address, access, first)
        for served in answers.values():
            check(address, model, served, like=first)
        unless_all_is_well.pop_all()
    again = _checker(address, model, first)
    unchecked = set(range(len(transports))) - answers.keys()
    backend = _backend(transports, model, access, again, unchecked)
    return model, OpenedBackend(
        backend=backend,
        name="kserve",
        device=f"{len(answers)} of {len(transports)} hosts",
        version=f"version {first.version} of {address.model}",
        reason=f"{address} was named",
        notices=tuple(f"left out for now: {told}" for told in silent),
    )


def _ask_all(transports: list[Transport]) -> tuple[dict[int, Served], list[str]]:
    """What each host serves, by its index, and a line for each that is silent."""
    answers: dict[int, Served] = {}
    silent: list[str] = []
    for index, transport in enumerate(transports):
        try:
            answers[index] = transport.describe()
        except Unreachable as error:
            silent.append(str(error))
        except Refused as error:
            raise PoanError(str(error)) from None
    if not answers:
        raise PoanError(silent[0])
    return answers, silent


def _check_token(address: Address, access: Access) -> None:
    """A token goes to this machine or through TLS."""
    local = {name for name, _ in address.hosts} <= {"localhost", "127.0.0.1", "::1"}
    if access.token is not None and not (local or address.secure):
        raise PoanError(f"{address}: a token would travel in the clear; use {address.scheme}s://")


def served_model(address: Address, access: Access, served: Served) -> Model:
    """The model by the manifest that the server states, else by the local one."""
    text = served.parameters.get(f"{MANIFEST_PARAMETER}.{served.version}")
    if text is not None:
        try:
            manifest = parse_manifest(json.loads(text), f"{address}: its manifest")
        except ValueError as error:
            raise PoanError(f"{address}: its manifest is not valid JSON: {error}") from None
    elif access.manifest is not None:
        manifest = read_manifest(access.manifest)
    else:
        raise PoanError(
            f"{address}: the server states no manifest ({MANIFEST_PARAMETER}.{served.version}); "
            "add --manifest FOLDER, the export that it serves"
        )
    file = _file(address, manifest, served)
    if access.manifest is not None:
        _check_local(address, file, read_manifest(access.manifest))
    parity = file.parity or manifest.parity
    if parity.verdict == "fail":
        raise PoanError(f"{address}: the parity verdict of {file.name} is fail; export it again")
    notices = []
    if parity.verdict == "pending":
        notices.append(f"{file.name}: not yet compared with PyTorch (parity pending)")
    if text is None:
        notices.append(f"{address}: states no hash; only tile and scale were compared")
    path = Path(address.model) / file.name
    return Model(manifest=manifest, file=file, path=path, notices=tuple(notices))


def _check_local(address: Address, file: ModelFile, local: Manifest) -> None:
    """A local manifest that was named must vouch for the file that is served."""
    if file.sha256 not in {listed.sha256 for listed in local.files}:
        raise PoanError(
            f"{address}: serves {file.name} of sha256 {file.sha256[:12]}..., which --manifest "
            "does not list"
        )


def _file(address: Address, manifest: Manifest, served: Served) -> ModelFile:
    """The file that the server says it runs, else the manifest's first."""
    name = served.parameters.get(f"{FILE_PARAMETER}.{served.version}", manifest.files[0].name)
    file = manifest.file(name)
    if file is None:
        listed = ", ".join(entry.name for entry in manifest.files)
        raise PoanError(f"{address}: serves {name}, which its manifest does not list ({listed})")
    return file


def check(address: Address, model: Model, served: Served, like: Served) -> None:
    """Refuse a host that serves something else than the manifest tells, or than another host."""
    tile, fine = model.manifest.tile, model.manifest.tile * model.manifest.scale
    for what, shape, side in (
        ("input", served.input_shape, tile),
        ("output", served.output_shape, fine),
    ):
        known = len(shape) == 4 and all(
            extent in (-1, wanted)
            for extent, wanted in zip(shape[1:], (1, side, side), strict=True)
        )
        if not known:
            raise PoanError(
                f"{address}: expected {what} shape (N, 1, {side}, {side}), got {tuple(shape)}"
            )
    if stated(served) != stated(like):
        raise PoanError(f"{address}: the hosts serve different models or versions of it")


def stated(served: Served) -> tuple[str, str, str | None]:
    """What two hosts of one model must agree on."""
    manifest = served.parameters.get(f"{MANIFEST_PARAMETER}.{served.version}")
    return served.input_name, served.output_name, manifest


def _checker(address: Address, model: Model, first: Served) -> Callable[[Transport], None]:
    """Asks a host that came back what it serves now."""

    def again(transport: Transport) -> None:
        served = transport.describe()
        try:
            check(address, model, served, like=first)
        except PoanError as error:
            raise Refused(str(error)) from None

    return again


def _transport(address: Address, host: tuple[str, int], access: Access) -> Transport:
    if address.scheme in ("kserve", "kserves"):
        return HttpTransport(address, host, access)
    with extras.needs("tritonclient", "triton"):
        from poan_runtime.engines.kserve.grpc import GrpcTransport
    return GrpcTransport(address, host, access)


def _backend(
    transports: list[Transport],
    model: Model,
    access: Access,
    again: Callable[[Transport], None],
    silent: Collection[int],
) -> KserveBackend:
    manifest, engine = model.manifest, model.file.engine
    full = None
    if engine is not None and engine.profile.min == engine.profile.max:
        full = engine.profile.max
    tile_bytes = 4 * manifest.tile**2 * (1 + manifest.scale**2)
    fitting = MOST_BYTES // (tile_bytes * (full or manifest.batch.opt))
    in_flight = max(1, min(fitting, MOST_ON_A_HOST * len(transports)))
    hosts = Hosts(
        transports,
        most=max(1, min(MOST_ON_A_HOST, in_flight)),
        patience_s=access.patience_s,
        check=again,
        silent=silent,
    )
    return KserveBackend(hosts, in_flight, full)
