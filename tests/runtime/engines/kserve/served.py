"""A small KServe v2 server in this process, which runs a model and fails when it is told to."""

import contextlib
import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from poan_runtime.network import load_network

JSON_LENGTH = "Inference-Header-Content-Length"


class Server:
    """What tests may set: ``states`` its parameters, ``fail`` statuses to answer next."""

    def __init__(self, folder: Path) -> None:
        self.network = load_network(folder)
        manifest = self.network.model.manifest
        self.parameters = {
            "poan.manifest.1": (folder / "manifest.json").read_text(),
            "poan.file.1": "model.onnx",
        }
        self.tile, self.fine = manifest.tile, manifest.tile * manifest.scale
        self.fail: list[int] = []
        self.asked: list[tuple[int, ...]] = []
        self.headers: list[dict[str, str]] = []
        self.most = self.now = 0
        self.as_json = False
        self.wait = 0.0
        self.lock = threading.Lock()

    def get(self, path: str) -> tuple[int, Any]:
        ports = {
            "inputs": [{"name": "lr", "datatype": "FP32", "shape": [-1, 1, self.tile, self.tile]}],
            "outputs": [{"name": "sr", "datatype": "FP32", "shape": [-1, 1, self.fine, self.fine]}],
        }
        if path == "/v2/models/tiny":
            return 200, {"name": "tiny", "versions": ["1"], **ports}
        if path == "/v2/models/tiny/versions/1":
            return 200, {"name": "tiny", **ports}
        if path == "/v2/models/tiny/versions/1/ready":
            return 200, {}
        if path == "/v2/models/tiny/versions/1/config" and self.parameters:
            values = {key: {"string_value": value} for key, value in self.parameters.items()}
            return 200, {"parameters": values}
        return 404, {"error": f"there is no {path}"}

    def infer(self, body: bytes, length: int) -> tuple[int, bytes, int | None]:
        with self.lock:
            if self.fail:
                return self.fail.pop(0), b'{"error": "told to\\nfail"}', None
            self.now += 1
            self.most = max(self.most, self.now)
        threading.Event().wait(self.wait)
        shape = json.loads(body[:length])["inputs"][0]["shape"]
        answer = self.network.opened.backend.run(
            np.frombuffer(body, "<f4", offset=length).reshape(shape)
        )
        with self.lock:
            self.asked.append(tuple(shape))
            self.now -= 1
        tensor: dict[str, Any] = {"name": "sr", "datatype": "FP32", "shape": list(answer.shape)}
        if self.as_json:
            tensor["data"] = answer.ravel().tolist()
            return 200, json.dumps({"outputs": [tensor]}).encode(), None
        head = json.dumps({"outputs": [tensor]}).encode()
        return 200, head + answer.astype("<f4").tobytes(), len(head)


@contextlib.contextmanager
def serving(
    server: Server, port: int = 0, tls: ssl.SSLContext | None = None
) -> Iterator[tuple[int, ThreadingHTTPServer]]:
    """Its port, while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            server.headers.append(dict(self.headers))
            status, found = server.get(self.path)
            self._send(status, json.dumps(found).encode(), None)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self._send(*server.infer(body, int(self.headers[JSON_LENGTH])))

        def _send(self, status: int, body: bytes, length: int | None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if length is not None:
                self.send_header(JSON_LENGTH, str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    http.daemon_threads = True
    if tls is not None:
        http.socket = tls.wrap_socket(http.socket, server_side=True)
    thread = threading.Thread(target=http.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield http.server_address[1], http
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
