"""Soak of the node: senders, kill -9 at random moments, a peer that goes away.

    python -m benchmarks.node_soak --series 200 --kills 10 --out benchmarks/results/node/soak.json

Three senders send made series of three slices and send an image again when it was not
acknowledged, as scanners do. The node is killed (SIGKILL, its workers with it by their own means)
and started again. In the middle third the peer is away. At the end every acknowledged image must
have exactly one derived instance in the peer's archive. Exit status 1 if that is not so.
"""

import argparse
import collections
import contextlib
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.sop_class import MRImageStorage  # type: ignore[attr-defined]

from benchmarks.record import machine, tell
from tests.runtime.images.dicom.made import ROOT, image

SLICES, SIDE = 3, 24
CONFIG = """
storage = "node"
monitor_port = 0
[listen]
port = {port}
least_free_mib = 0
timeout_s = 10.0
[work]
quiet_s = 20.0
trust_count = true
backend = "onnxruntime"
threads = 1
[send]
first_pause_s = 0.5
longest_pause_s = 3.0
[[peer]]
name = "archive"
ae_title = "ARCHIVE"
host = "127.0.0.1"
port = {archive}
[[rule]]
model = "{model}"
targets = ["archive"]
"""


class Archive:
    """Keeps the UIDs of what it gets, and of what that was made from."""

    def __init__(self) -> None:
        self.got: collections.Counter[str] = collections.Counter()
        self.source: dict[str, str] = {}
        self.bytes: dict[str, set[int]] = collections.defaultdict(set)
        self._ae, self.port = AE(ae_title="ARCHIVE"), 0
        self._ae.add_supported_context(MRImageStorage)
        self.open()

    def open(self) -> None:
        """Listen where it listened before."""
        handlers: Any = [(evt.EVT_C_STORE, self._store)]
        server: Any = self._ae.start_server(
            ("127.0.0.1", self.port), block=False, evt_handlers=handlers
        )
        self._server, self.port = server, server.server_address[1]

    def close(self) -> None:
        """Go away, in the middle of whatever is coming in."""
        self._server.shutdown()
        for association in self._server.active_associations:
            association.abort()

    def _store(self, event: Any) -> int:
        dataset = event.dataset
        uid = str(dataset.SOPInstanceUID)
        self.bytes[uid].add(hash(event.request.DataSet.getvalue()))
        self.source[uid] = str(dataset.SourceImageSequence[0].ReferencedSOPInstanceUID)
        self.got[uid] += 1
        return 0


class Node:
    """The process, killed and started again."""

    def __init__(self, folder: Path, log: Path) -> None:
        self._line = [sys.executable, "-m", "poan_runtime.commands.node"]
        self._line += ["--config", str(folder / "node.toml")]
        self._log = log
        self.start()

    def start(self) -> None:
        """Start it; it listens some seconds later."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._line, stderr=log)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def end(self) -> int:
        """SIGTERM; the exit status."""
        self._process.terminate()
        return self._process.wait(120)


def series(number: int) -> list[Dataset]:
    """A small series that no other is like."""
    chance = np.random.default_rng(number)
    made = []
    for k in range(SLICES):
        ds = image(k + 1, (0.0, 0.0, 4.0 * k), chance.integers(1, 1000, (SIDE, SIDE)))
        ds.ImagesInAcquisition = SLICES
        ds.SeriesInstanceUID = f"{ROOT}2.{number}"
        ds.SOPInstanceUID = f"{ROOT}3.{number}.{k + 1}"
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        made.append(ds)
    return made


def send(
    title: str, numbers: list[int], port: int, tally: collections.Counter[str], pace_s: float
) -> None:
    """Send series one after the other, each image until it is acknowledged."""
    for number in numbers:
        time.sleep(random.uniform(0, 2 * pace_s))
        left = series(number)
        while left:
            ae = AE(ae_title=title)
            ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = 10
            ae.add_requested_context(MRImageStorage)
            association = ae.associate("127.0.0.1", port, ae_title="POAN")
            if not association.is_established:
                tally["not answered"] += 1
                time.sleep(0.3)
                continue
            with contextlib.suppress(RuntimeError, ValueError):
                while left:
                    status = association.send_c_store(left[0]).get("Status")
                    if status != 0:
                        tally["not acknowledged"] += 1
                        break
                    tally["acknowledged"] += 1
                    left.pop(0)
            association.release()


def soak(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run everything; what was found."""
    chance, archive, tally = random.Random(args.seed), Archive(), collections.Counter[str]()
    port = free_port()
    config = CONFIG.format(port=port, archive=archive.port, model=args.model)
    (folder / "node.toml").write_text(config)
    node, start = Node(folder, folder / "log"), time.monotonic()
    pace_s = 3 * args.kills * sum(args.between) / 2 / args.series  # sends as long as it kills
    senders = [
        threading.Thread(
            target=send,
            args=(f"SENDER{s}", [*range(s, args.series, 3)], port, tally, pace_s),
            daemon=True,
        )
        for s in range(3)
    ]
    for sender in senders:
        sender.start()
    expected, kills, away, last = args.series * SLICES, 0, "not yet", 0.0
    while len(archive.got) < expected and time.monotonic() - start < args.longest_s:
        time.sleep(chance.uniform(*args.between))
        share = len(archive.got) / expected
        if away == "not yet" and share > 0.33:
            archive.close()
            away_until, away = time.monotonic() + args.away_s, "away"
        if away == "away" and time.monotonic() > away_until:
            archive.open()
            away = "back"
        if kills < args.kills:
            node.kill()
            kills += 1
            node.start()
        elif share == last and not any(s.is_alive() for s in senders):
            print(f"{len(archive.got)} of {expected}", file=sys.stderr, flush=True)
        last = share
    seconds = time.monotonic() - start
    time.sleep(2.0)  # what would come twice may still come
    status = node.end()
    return verdict(archive, tally, folder, args.series) | {
        "series": args.series,
        "kills": kills,
        "peer": f"{away} ({args.away_s:.0f} s)",
        "seconds": round(seconds, 1),
        "exit_status_after_sigterm": status,
    }


def verdict(
    archive: Archive, tally: collections.Counter[str], folder: Path, count: int
) -> dict[str, Any]:
    """Every image must have one derived instance, and that one content."""
    wanted = {f"{ROOT}3.{n}.{k + 1}" for n in range(count) for k in range(SLICES)}
    derived = collections.Counter(archive.source[uid] for uid in archive.got)
    events = collections.Counter(
        json.loads(line)["event"]
        for line in (folder / "log").read_text().splitlines()
        if line.startswith("{")
    )
    return {
        "images_acknowledged": tally["acknowledged"],
        "images_sent_again_for_lack_of_an_answer": tally["not acknowledged"],
        "repeats_that_the_node_counted": events["repeated"],
        "derived_instances_in_the_archive": len(archive.got),
        "images_without_a_derived_instance": len(wanted - set(derived)),
        "images_with_several_derived_instances": sum(n > 1 for n in derived.values()),
        "instances_that_came_with_two_contents": sum(len(b) > 1 for b in archive.bytes.values()),
        "instances_sent_to_the_archive_again": sum(archive.got.values()) - len(archive.got),
        "attempts_that_failed": events["failed"],
        "starts": events["started"],
        "lines_that_are_no_event": sum(
            not line.startswith("{") for line in (folder / "log").read_text().splitlines()
        ),
    }


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def main() -> int:
    """Run the soak and write what was found."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--series", type=int, default=200)
    p.add_argument("--kills", type=int, default=10)
    p.add_argument("--between", type=float, nargs=2, default=(5.0, 10.0), help="seconds of a life")
    p.add_argument("--away-s", type=float, default=15.0)
    p.add_argument("--longest-s", type=float, default=540.0)
    p.add_argument("--model", default="t2_x2")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path)
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = soak(args, Path(folder))
    tell({"machine": machine(), **found}, args.out)
    bad = ("images_without_a_derived_instance", "images_with_several_derived_instances")
    return int(any(found[name] for name in (*bad, "instances_that_came_with_two_contents")))


if __name__ == "__main__":
    raise SystemExit(main())
