"""KServe v2 over HTTP with the standard library: JSON in front, the tiles' bytes behind it.

The binary form is Triton's extension, which other servers take too:
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

import contextlib
import http.client
import json
import queue
import ssl
from typing import Any

import numpy as np

from poan_runtime.engines.kserve.address import Access, Address
from poan_runtime.engines.kserve.transport import (
    Refused,
    Served,
    Tiles,
    Transport,
    Unreachable,
    newest,
)
from poan_runtime.errors import PoanError

JSON_LENGTH = "Inference-Header-Content-Length"
LATER = (408, 425, 429, 500, 502, 503, 504)
"""Statuses after which another try may succeed."""


class HttpTransport(Transport):
    """One host; a connection for each request in flight, kept for the next."""

    def __init__(self, address: Address, host: tuple[str, int], access: Access) -> None:
        self._told = address.of(host)
        self._host = host
        self._timeout = access.timeout_s
        self._tls = tls_context(access) if address.secure else None
        bearer = access.bearer()
        self._headers = {} if bearer is None else {"Authorization": f"Bearer {bearer}"}
        self._base = f"/v2/models/{address.model}"
        self._version = address.version
        self._served: Served | None = None
        self._idle: queue.LifoQueue[http.client.HTTPConnection] = queue.LifoQueue()

    def describe(self) -> Served:
        """See `Transport.describe`."""
        version = self._version or newest(self._json(self._base).get("versions"), self._told)
        path = f"{self._base}/versions/{version}"
        about = self._json(path)
        self._json(f"{path}/ready")
        self._served = Served(
            version=version,
            parameters=self._parameters(path),
            **_port(about, "input", self._told),
            **_port(about, "output", self._told),
        )
        return self._served

    def infer(self, batch: Tiles) -> Tiles:
        """See `Transport.infer`."""
        served = self._served
        assert served is not None, "a model is described before it is asked"
        head, body = request(batch, served)
        headers = {JSON_LENGTH: str(len(head)), "Content-Type": "application/octet-stream"}
        path = f"{self._base}/versions/{served.version}/infer"
        status, answer, length = self._ask("POST", path, head + body, headers)
        if status != 200:
            self._raise(status, answer)
        return answered(answer, length, self._told)

    def close(self) -> None:
        """See `Transport.close`."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait().close()

    def _parameters(self, path: str) -> dict[str, str]:
        """Those of Triton's configuration; none on a server that keeps none."""
        status, answer, _ = self._ask("GET", f"{path}/config")
        if status != 200:
            return {}
        found = _object(answer, self._told).get("parameters", {})
        return {
            key: str(value.get("string_value", ""))
            for key, value in found.items()
            if isinstance(value, dict)
        }

    def _json(self, path: str) -> dict[str, Any]:
        status, answer, _ = self._ask("GET", path)
        if status != 200:
            self._raise(status, answer)
        return _object(answer, self._told) if answer.strip() else {}

    def _raise(self, status: int, answer: bytes) -> None:
        """What the server said, as one of the two failures."""
        with contextlib.suppress(ValueError, AttributeError):
            answer = str(json.loads(answer).get("error", "")).encode()
        words = " ".join(answer.decode("utf-8", "replace").split())[:200]
        told = f"{self._told}: the server answered {status}" + (f": {words}" if words else "")
        raise Unreachable(told) if status in LATER else Refused(told)

    def _ask(
        self, method: str, path: str, body: bytes | None = None, headers: Any = None
    ) -> tuple[int, bytes, int | None]:
        """Status, body, and the length of the JSON in front of it."""
        connection = self._connection()
        try:
            connection.request(method, path, body, {**self._headers, **(headers or {})})
            response = connection.getresponse()
            answer = response.read()
        except ssl.SSLCertVerificationError as error:
            connection.close()
            raise Refused(f"{self._told}: its certificate does not hold: {error.reason}") from None
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise Unreachable(f"{self._told}: {_words(error)}") from None
        self._idle.put(connection)
        length = response.headers.get(JSON_LENGTH, "")
        return response.status, answer, int(length) if length.isdecimal() else None

    def _connection(self) -> http.client.HTTPConnection:
        with contextlib.suppress(queue.Empty):
            return self._idle.get_nowait()
        if self._tls is not None:
            return http.client.HTTPSConnection(
                *self._host, timeout=self._timeout, context=self._tls
            )
        return http.client.HTTPConnection(*self._host, timeout=self._timeout)


def tls_context(access: Access) -> ssl.SSLContext:
    """A context that checks the server, by ``access.ca`` if given, and shows our certificate."""
    try:
        context = ssl.create_default_context(cafile=access.ca)
        if access.certificate is not None:
            context.load_cert_chain(access.certificate, access.key)
    except (OSError, ValueError) as error:
        names = [str(path) for path in (access.ca, access.certificate, access.key) if path]
        raise PoanError(f"{', '.join(names)}: expected PEM files: {_words(error)}") from None
    return context


def request(batch: Tiles, served: Served) -> tuple[bytes, bytes]:
    """A request's JSON and its tiles, little-endian."""
    data = np.ascontiguousarray(batch, "<f4").tobytes()
    tensor = {
        "name": served.input_name,
        "shape": list(batch.shape),
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(data)},
    }
    wanted = {"name": served.output_name, "parameters": {"binary_data": True}}
    return json.dumps({"inputs": [tensor], "outputs": [wanted]}).encode(), data


def answered(body: bytes, length: int | None, told: str) -> Tiles:
    """The tiles in an answer, whether behind the JSON (of ``length`` bytes) or in it."""
    about = _object(body if length is None else body[:length], told)
    try:
        (tensor,) = about["outputs"]
        shape, kind = tuple(map(int, tensor["shape"])), tensor["datatype"]
        if kind != "FP32":
            raise Refused(f"{told}: expected FP32 tiles, got {kind}")
        if length is None:
            return np.array(tensor["data"], np.float32).reshape(shape)
        tiles = np.frombuffer(body, "<f4", offset=length).reshape(shape)
    except (KeyError, TypeError, ValueError) as error:
        raise Unreachable(f"{told}: the answer is not whole: {_words(error)}") from None
    return tiles.astype(np.float32)


def _port(about: dict[str, Any], kind: str, told: str) -> dict[str, Any]:
    """Name and shape of the only input or output."""
    ports = about.get(f"{kind}s") or []
    if len(ports) != 1 or ports[0].get("datatype") != "FP32":
        raise Refused(f"{told}: expected one FP32 {kind}, got {json.dumps(ports)[:200]}")
    return {f"{kind}_name": ports[0]["name"], f"{kind}_shape": tuple(ports[0]["shape"])}


def _object(text: bytes, told: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Refused(f"{told}: expected a KServe v2 server's JSON, got {text[:60]!r}")
    return found


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(getattr(error, "strerror", None) or error) or type(error).__name__
