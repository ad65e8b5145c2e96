"""A node fed with malformed DICOM over the wire, then beset by bad guests.

    python -m benchmarks.node_malformed --count 10000 --real ../shared/data/dicom \\
        --out benchmarks/results/node/malformed.json

Every file is a C-STORE of a series of its own, so that what the door takes goes through a worker
process. Throughout somebody else asks with C-ECHO. Exit status 1 unless the node is the process
that was started, every C-ECHO was answered, every file has exactly one line with its end, no
line is anything but an event, and a good series sent last arrives at the peer.
"""

import argparse
import collections
import json
import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.node_malformed.files import Sent, base, content, fuzzed, named
from benchmarks.node_malformed.guests import (
    Echoes,
    associations,
    echo,
    flood,
    four_gigabytes,
    half_a_head,
    idle,
    send,
)
from benchmarks.node_soak import Archive, Node, free_port
from benchmarks.record import machine, write

CONFIG = """
storage = "node"
monitor_port = 0
[listen]
port = {port}
least_free_mib = 0
[work]
quiet_s = 1.0
workers = {workers}
backend = "onnxruntime"
threads = 1
attempts = 1
[[peer]]
name = "archive"
ae_title = "ARCHIVE"
host = "127.0.0.1"
port = {archive}
[[rule]]
model = "{model}"
targets = ["archive"]
"""
ENDS = ("super-resolved", "unmatched", "failed")
GUESTS = 200


def events(log: Path) -> list[dict[str, Any]]:
    """Every line of the log; one that is no event has the event ``?``."""
    lines = log.read_text(errors="replace").splitlines()
    return [json.loads(line) if line.startswith("{") else {"event": "?"} for line in lines]


def fed(files: Iterable[Sent], port: int, log: Path, longest_s: float) -> dict[str, Any]:
    """Send everything, wait for the end of what was taken, and count."""
    before = len(events(log))
    statuses: collections.Counter[str] = collections.Counter()
    start = time.perf_counter()
    for _, status in send(files, port):
        statuses["hung up" if status is None else f"{status:04X}"] += 1
    sent_s = time.perf_counter() - start
    taken: set[str] = set()
    ends: collections.Counter[str] = collections.Counter()
    while time.perf_counter() - start < longest_s:
        lines = events(log)[before:]
        taken = {e["series"] for e in lines if e["event"] == "stored"}
        ends = collections.Counter(e["series"] for e in lines if e["event"] in ENDS)
        if taken <= set(ends):
            break
        time.sleep(2.0)
    lines = events(log)[before:]
    kinds = collections.Counter(e["event"] for e in lines)
    why = collections.Counter(_cause(e) for e in lines if e["event"] == "failed")
    return {
        "sent": statuses.total(),
        "answers": dict(statuses.most_common()),
        "seconds_to_send": round(sent_s, 1),
        "seconds": round(time.perf_counter() - start, 1),
        "refused_at_the_door": kinds["refused"],
        "series_taken": len(taken),
        "ends": {kind: kinds[kind] for kind in ENDS},
        "series_without_an_end": len(taken - set(ends)),
        "series_with_several_ends": sum(n > 1 for n in ends.values()),
        "worker_processes_that_died": sum("process ended" in cause for cause in why),
        "why_failed": dict(why.most_common(40)),
    }


def _cause(event: dict[str, Any]) -> str:
    """The reason without names of files and numbers of their own."""
    return str(event["error"]).split(".dcm: ")[-1][:60]


def memory_mib(pid: int) -> int:
    """Most that a process and its children ever had in memory, summed."""
    pids = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        pids += [int(child) for child in (task / "children").read_text().split()]
    peaks = []
    for one in pids:
        status = Path(f"/proc/{one}/status").read_text()
        peaks += [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")]
    return sum(peaks) >> 10


def beset(port: int) -> dict[str, Any]:
    """Bad guests of one address, kind by kind."""
    return {
        "idle connections": flood(port, GUESTS, idle),
        "half of a PDU's head": flood(port, GUESTS, half_a_head),
        "a PDU of 4 GB": flood(port, GUESTS, four_gigabytes),
        "idle associations": associations(port, 40),
    }


def run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything; what was found."""
    archive, port = Archive(), free_port()
    settings = {"archive": archive.port, "model": args.model, "workers": args.workers}
    (folder / "node.toml").write_text(CONFIG.format(port=port, **settings))
    node = Node(folder, folder / "log")
    try:
        found = tried(args, port, folder / "log", archive)
        found["peak_mib_of_node_and_workers"] = memory_mib(node.pid)
    finally:
        status = node.end()
    return found | {"exit status after SIGTERM": status}


def tried(args: argparse.Namespace, port: int, log: Path, archive: Archive) -> dict[str, Any]:
    """What a running node does with all of it."""
    assert echo(port, patience_s=60) is not None
    echoes = Echoes(port)
    one_fault = [one.numbered(80_000_000 + n) for n, one in enumerate(named())]
    found: dict[str, Any] = {
        "one fault each": fed(one_fault, port, log, args.longest_s),
        "broken at random": fed(fuzzed(args.count, args.real), port, log, args.longest_s),
    }
    echoes.close()
    answered = [s for s in echoes.seconds if s is not None]
    found["echo meanwhile"] = {
        "asked": len(echoes.seconds),
        "answered": len(answered),
        **{f"p{q}_s": round(float(np.percentile(answered, q)), 3) for q in (50, 99, 100)},
    }
    found["guests"] = beset(port)
    good = Sent(name="good", content=content(base())).numbered(79_000_000)
    found["a good series at the end"] = fed([good], port, log, 60)
    until = time.monotonic() + 30
    while good.instance not in archive.source.values() and time.monotonic() < until:
        time.sleep(0.2)
    lines = events(log)
    return found | {
        "good series arrived": good.instance in archive.source.values(),
        "starts of the node": sum(e["event"] == "started" for e in lines),
        "lines that are no event": sum(e["event"] == "?" for e in lines),
        "a patient's name in the log": "Secret" in log.read_text(errors="replace"),
    }


def is_well(found: dict[str, Any]) -> bool:
    """Whether all that must hold does."""
    parts = (found["one fault each"], found["broken at random"])
    asked = found["echo meanwhile"]
    return (
        all(p["series_without_an_end"] == p["series_with_several_ends"] == 0 for p in parts)
        and all(p["refused_at_the_door"] + p["answers"].get("0000", 0) == p["sent"] for p in parts)
        and asked["asked"] == asked["answered"]
        and all(g["echo_from_another_address_s"] is not None for g in found["guests"].values())
        and found["good series arrived"]
        and found["starts of the node"] == 1
        and not found["lines that are no event"]
        and not found["a patient's name in the log"]
        and found["exit status after SIGTERM"] == 0
    )


def main() -> int:
    """Run, and write what was found."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--count", type=int, default=10_000)
    p.add_argument("--real", type=Path, help="a folder of real DICOM, broken too")
    p.add_argument("--model", default="mr_x2")
    p.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    p.add_argument("--longest-s", type=float, default=3600.0)
    p.add_argument("--keep", type=Path, help="a folder for the node's storage and log")
    p.add_argument("--out", type=Path)
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {"machine": machine(), **run(args, args.keep or Path(folder))}
    print(json.dumps(found, indent=1))
    if args.out:
        write(args.out, found)
    return 0 if is_well(found) else 1


if __name__ == "__main__":
    raise SystemExit(main())
