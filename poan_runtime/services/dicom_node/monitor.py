"""Metrics for Prometheus and a health check, on loopback alone."""

import http.server
import threading
from typing import Any

from poan_runtime.services.dicom_node.node import Node
from poan_runtime.services.dicom_node.receive import free_bytes

JOB_STATES = ("arriving", "waiting", "working", "sending", "done", "unmatched", "dead")
DELIVERY_STATES = ("waiting", "asking", "done", "dead")
Samples = list[tuple[str, str, float]]


def metrics(node: Node) -> str:
    """The node in Prometheus' text format."""
    jobs, deliveries, tally = node.queue.counts(), node.outbox.counts(), node.tally
    sent = [(f'{{peer="{n}"}}', s.sent) for n, s in node.sendings.items()]
    failures = [(f'{{peer="{n}"}}', s.failures) for n, s in node.sendings.items()]
    lines = [
        _metric("images", "gauge", "received images on the disk", [("", jobs["images"])]),
        _metric("repeats", "gauge", "images that came again", [("", jobs["repeats"])]),
        _metric("refused_total", "counter", "images refused", [("", node.receiver.refused)]),
        _metric("series", "gauge", "series by state", _states(jobs, JOB_STATES)),
        _metric("deliveries", "gauge", "series for a peer", _states(deliveries, DELIVERY_STATES)),
        _metric("super_resolved_total", "counter", "series done", [("", tally.series)]),
        _metric("slices_total", "counter", "slices made", [("", tally.slices)]),
        _metric("work_seconds_total", "counter", "seconds at series", [("", tally.seconds)]),
        _metric("failures_total", "counter", "attempts that failed", [("", tally.failures)]),
        _metric("sent_total", "counter", "instances that a peer took", sent),
        _metric("send_failures_total", "counter", "deliveries put off", failures),
        _metric("workers_busy", "gauge", "processes at a series", [("", node.workers.busy)]),
        _metric("disk_free_bytes", "gauge", "free", [("", free_bytes(node.storage.root))]),
    ]
    return "".join(lines)


def _states(counts: dict[str, int], states: tuple[str, ...]) -> list[tuple[str, float]]:
    return [(f'{{state="{state}"}}', counts.get(state, 0)) for state in states]


def _metric(name: str, kind: str, says: str, samples: list[tuple[str, Any]]) -> str:
    """
    >>> print(_metric("images", "gauge", "received images", [("", 3)]), end="")
    # HELP poan_node_images received images
    # TYPE poan_node_images gauge
    poan_node_images 3
    """
    head = f"# HELP poan_node_{name} {says}\n# TYPE poan_node_{name} {kind}\n"
    return head + "".join(f"poan_node_{name}{label} {value}\n" for label, value in samples)


class Monitor:
    """Serves ``/metrics`` and ``/health`` (200, or 503 with the troubles) on 127.0.0.1."""

    def __init__(self, node: Node, port: int) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self) -> None:
                status, body = _answer(node, self.path)
                self.send_response(status)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


def _answer(node: Node, path: str) -> tuple[int, bytes]:
    if path == "/metrics":
        return 200, metrics(node).encode()
    if path == "/health":
        troubles = node.troubles()
        return (503 if troubles else 200), "\n".join([*(troubles or ["well"]), ""]).encode()
    return 404, b"expected /metrics or /health\n"
