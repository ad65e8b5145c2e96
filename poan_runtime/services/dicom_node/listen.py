"""A listening socket that one slow, greedy or numerous guest cannot hold up.

pynetdicom's own server does TLS handshakes one at a time, reads a PDU however long it says it is
and however slowly it comes, and counts as an association whoever has connected.
"""

import collections
import contextlib
import dataclasses
import socket
import ssl
import threading
import time
from typing import Any, cast

from pynetdicom import AE, _config, evt
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

LONGEST_PDU = 1 << 20
"""Bytes. We announce 16 KiB; nobody has a reason to send more than a request of some KiB."""
SLACK = 1 << 20
GREETING_S = 5.0
"""How long a guest may take to say who it is."""

_config.LOG_HANDLER_LEVEL = "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """How many may come at once, how long one may keep us waiting, how much one may bring.

    ``allowed`` are addresses; empty lets everyone in. ``largest`` is bytes of one message.
    """

    allowed: tuple[str, ...] = ()
    most_associations: int = 16
    most_per_address: int = 8
    timeout_s: float = 30.0
    largest: int = 1 << 29


class GuardedSocket(AssociationSocket):
    """A socket that gives a PDU ``timeout_s`` to arrive, and a message ``largest`` bytes."""

    limits = Limits()
    received = 0

    def recv(self, nr_bytes: int) -> bytearray:
        """Read exactly so many bytes, or raise OSError."""
        if nr_bytes > LONGEST_PDU or self.received + nr_bytes > self.limits.largest + SLACK:
            raise OSError("longer than we take")
        self.received += nr_bytes
        known = self.assoc.is_established
        patience_s = self.limits.timeout_s if known else min(GREETING_S, self.limits.timeout_s)
        until = time.monotonic() + patience_s
        stream, wanted = bytearray(), nr_bytes
        connection = cast(socket.socket, self.socket)
        while wanted:
            connection.settimeout(max(0.001, until - time.monotonic()))
            part = connection.recv(min(wanted, 1 << 16))
            if not part:
                break
            stream += part
            wanted -= len(part)
        return stream

    def _shutdown_socket(self) -> None:
        """Close it, also when the other side has hung up first."""
        connection = cast(socket.socket, self.socket)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()


class GuardedHandler(RequestHandler):
    """Makes associations over guarded sockets."""

    def _create_association(self) -> Any:
        association = super()._create_association()
        plain: Any = association.dul.socket
        plain.__class__ = GuardedSocket
        plain.limits = cast(GuardedServer, self.server).limits
        return association


class GuardedServer(ThreadedAssociationServer):
    """Hangs up on strangers and on too many from one address, before anything is read."""

    daemon_threads = True
    limits = Limits()
    request_queue_size = 64

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._greeting: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()
        super().__init__(*arguments, **named)

    def get_request(self) -> Any:
        """The next connection; its TLS handshake is left to its own thread."""
        connection, address = cast(socket.socket, self.socket).accept()
        connection.settimeout(min(GREETING_S, self.limits.timeout_s))
        if self.ssl_context:
            connection = self.ssl_context.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        return connection, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether the address is on the list and has not too many connections already."""
        limits = self.limits
        if limits.allowed and client_address[0] not in limits.allowed:
            return False
        open_now = collections.Counter(
            association.requestor.address for association in self.active_associations
        )
        with self._lock:
            open_now += self._greeting
            welcome = (
                open_now[client_address[0]] < limits.most_per_address
                and open_now.total() < 2 * limits.most_associations
            )
            self._greeting[client_address[0]] += welcome
        return welcome

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """In the connection's own thread: the handshake, then the association."""
        try:
            if isinstance(request, ssl.SSLSocket):
                request.do_handshake()
            self.finish_request(request, client_address)
        except OSError:  # no handshake: a stranger
            self.shutdown_request(request)
        finally:
            with self._lock:
                self._greeting[client_address[0]] -= 1


def listen(
    ae: AE, address: tuple[str, int], limits: Limits, handlers: Any, tls: ssl.SSLContext | None
) -> GuardedServer:
    """Start to serve in a thread of its own."""
    ae.maximum_associations = limits.most_associations
    ae.network_timeout = ae.dimse_timeout = limits.timeout_s
    ae.acse_timeout = min(GREETING_S, limits.timeout_s)

    def forget_bytes(event: Any) -> None:
        with contextlib.suppress(AttributeError):  # the connection has gone
            event.assoc.dul.socket.received = 0

    server = cast(
        GuardedServer,
        ae.make_server(
            address,
            evt_handlers=[*handlers, (evt.EVT_DIMSE_RECV, forget_bytes)],
            ssl_context=tls,
            server_class=GuardedServer,
            request_handler=GuardedHandler,
        ),
    )
    server.limits = limits
    ae._servers.append(server)
    serve = {"poll_interval": 0.1}
    threading.Thread(target=server.serve_forever, kwargs=serve, daemon=True).start()
    return server
