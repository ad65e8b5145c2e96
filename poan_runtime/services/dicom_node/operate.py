"""What an operator does to a node: look, give another round, drop, check a configuration."""

from poan_runtime.engines.backend import EngineOptions
from poan_runtime.engines.which_file import find_runnable
from poan_runtime.errors import PoanError
from poan_runtime.services.dicom_node.config import Config
from poan_runtime.services.dicom_node.database import Database
from poan_runtime.services.dicom_node.log import short
from poan_runtime.services.dicom_node.node import forget
from poan_runtime.services.dicom_node.outbox import Outbox
from poan_runtime.services.dicom_node.queue import Queue
from poan_runtime.services.dicom_node.send import (
    Caller,
    SendError,
    client_context,
    server_context,
)
from poan_runtime.services.dicom_node.storage import Storage

MOST_SHOWN = 20


def status(config: Config) -> list[str]:
    """Counts, and the series that are not done."""
    queue, outbox, _ = _open(config)
    lines = [f"{name:10} {count}" for name, count in queue.counts().items()]
    lines += [f"deliveries {state} {count}" for state, count in outbox.counts().items()]
    left = [job for job in queue.jobs() if job[1] not in ("done", "unmatched")]
    for series, state, images, attempts, error in left[:MOST_SHOWN]:
        line = f"{short(series)} {state}: {images} images, {attempts} attempts {error}"
        lines.append(line.strip())
    if len(left) > MOST_SHOWN:
        lines.append(f"... and {len(left) - MOST_SHOWN} more")
    for state in ("waiting", "asking", "dead"):
        for series, peer, attempts, error in outbox.deliveries(state)[:MOST_SHOWN]:
            if error:
                lines.append(f"{short(series)} to {peer} {state}: {attempts} attempts, {error}")
    return lines


def retry(config: Config, name: str | None) -> list[str]:
    """Another round for what was given up."""
    queue, outbox, storage = _open(config)
    series = None if name is None else _series(queue, name)
    dead = {job[0] for job in queue.jobs("dead")}
    dead |= {delivery[0] for delivery in outbox.deliveries("dead")}
    line = f"{queue.retry(series)} series and {outbox.retry(series)} deliveries wait again"
    for one in dead if series is None else dead & {series}:
        storage.take_up(one)
    return [line]


def drop(config: Config, name: str) -> list[str]:
    """Forget a series."""
    queue, _, storage = _open(config)
    if not forget(_series(queue, name), queue, storage):
        raise PoanError(f"{name}: is being worked on; try again")
    return [f"{name}: dropped"]


def check(config: Config, *, echo: bool) -> list[str]:
    """Whether models, certificates and folder are there; with ``echo`` whether peers answer."""
    Storage(config.storage)
    work = config.work
    options = EngineOptions(backend=work.backend, device=work.device, precision=work.precision)
    lines = []
    for rule in config.rules:
        model = find_runnable(rule.model, options)
        targets = ", ".join(rule.targets)
        lines.append(f"rule: {model.manifest.name} ({model.path.name}) to {targets}")
    if config.tls is not None:
        try:
            server_context(config.tls)
            client_context(config.tls)
        except OSError as error:  # ssl.SSLError is one
            raise PoanError(f"[tls]: {error.strerror or error}") from None
    if echo:
        caller = Caller(config.listen.ae_title, config.listen.timeout_s, config.tls)
        for peer in config.peers:
            try:
                caller.echo(peer)
            except SendError as error:
                raise PoanError(f"peer {error}") from None
            lines.append(f"peer {peer.name}: answers")
    return [*lines, "the configuration is in order"]


def _open(config: Config) -> tuple[Queue, Outbox, Storage]:
    storage = Storage(config.storage)
    database = Database(storage.database)
    return Queue(database, config.job_retry), Outbox(database, config.send_retry), storage


def _series(queue: Queue, name: str) -> str:
    """The series of that short name, or of that UID."""
    found = [job[0] for job in queue.jobs() if name in (short(job[0]), job[0])]
    if len(found) != 1:
        raise PoanError(f"{name}: no such series; status shows them")
    return found[0]
