"""The whole node between a sender and a peer."""

import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poan_runtime.commands.node import main
from poan_runtime.errors import PoanError
from poan_runtime.services.dicom_node import node as module
from poan_runtime.services.dicom_node.config import read_config
from poan_runtime.services.dicom_node.log import Log, short
from poan_runtime.services.dicom_node.monitor import Monitor
from poan_runtime.services.dicom_node.node import Node
from tests.runtime.services.dicom_node.conftest import WriteConfig
from tests.runtime.services.dicom_node.peer import Archive, Running, decoded, images, sent, until

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


Run = Callable[[Path], Running]


def test_a_series_comes_back_finer_with_patient_and_sources(
    run: Run, write_config: WriteConfig, archive: Archive
) -> None:
    running = run(write_config())
    assert sent(running.node.receiver.port, images(3)) == [0, 0, 0]
    assert running.until(lambda: running.node.queue.jobs("done") != [])
    fine = sorted(archive.got, key=lambda ds: ds.InstanceNumber)
    assert [decoded(ds)[0, 0] for ds in fine] == [0, 1, 2]
    assert all(decoded(ds).shape == (16, 16) for ds in fine)
    assert {ds.PatientID for ds in fine} == {"SECRETID"}
    sources = [ds.SourceImageSequence[0].ReferencedSOPInstanceUID for ds in fine]
    assert sources == [ds.SOPInstanceUID for ds in images(3)]
    told = json.dumps(running.lines)
    for secret in ("Secret", "SECRETID", "19700101", "T2 axial", str(images(1)[0].SOPInstanceUID)):
        assert secret not in told


@pytest.mark.slow
def test_the_same_series_sent_to_another_node_gives_the_same_instances(
    run: Run, write_config: WriteConfig, archive: Archive
) -> None:
    for name in ("a", "b"):
        path = write_config(f"{name}.toml")
        path.write_text(path.read_text().replace('"node"', f'"{name}"'))
        running = run(path)
        sent(running.node.receiver.port, images(2))
        assert running.until(lambda r=running: r.node.queue.jobs("done") != [])
    assert [*archive.times().values()] == [2, 2]


@pytest.mark.slow
def test_a_late_image_gives_a_new_series_and_touches_no_instance_of_the_old(
    run: Run, write_config: WriteConfig, archive: Archive
) -> None:
    running = run(write_config())
    for part in (images(3)[:2], images(3)[2:]):
        sent(running.node.receiver.port, part)
        expected = 2 if len(part) == 2 else 5
        assert running.until(lambda n=expected: len(archive.got) == n)
    assert set(archive.times().values()) == {1}
    assert len({ds.SeriesInstanceUID for ds in archive.got}) == 2


def test_rules_choose_by_what_the_header_says_and_the_rest_is_left(
    run: Run, write_config: WriteConfig, archive: Archive
) -> None:
    running = run(write_config(rule='description = "^t2"\nsequence = "SE"\nrows = [8, 8]'))
    port = running.node.receiver.port
    other = images(2, series=3)
    for ds in other:
        ds.SeriesDescription = "T1 axial"
    sent(port, images(2) + other + images(2, series=4, side=10))
    assert running.until(lambda: running.node.queue.counts().get("unmatched") == 2)
    assert running.until(lambda: running.node.queue.counts().get("done") == 1)
    assert {ds.SeriesDescription for ds in archive.got} == {"T2 axial SR x2 AI"}


def test_a_result_that_a_peer_sends_back_is_not_made_finer_again(
    run: Run, write_config: WriteConfig, archive: Archive
) -> None:
    running = run(write_config())
    sent(running.node.receiver.port, images(2))
    assert running.until(lambda: running.node.queue.counts().get("done") == 1)
    sent(running.node.receiver.port, list(archive.got))
    assert running.until(lambda: running.node.queue.counts().get("unmatched") == 1)
    assert len(archive.got) == 2


@pytest.mark.slow
def test_a_peer_that_is_away_gets_everything_once_when_it_is_back(
    run: Run, write_config: WriteConfig, archive: Archive
) -> None:
    archive.stop()
    running = run(write_config())
    sent(running.node.receiver.port, images(2))
    assert running.until(lambda: len(running.events("not sent")) >= 2)
    assert running.events("not sent")[0]["error"] == "pacs: does not answer"
    archive.start()
    assert running.until(lambda: running.node.queue.jobs("done") != [])
    assert [*archive.times().values()] == [1, 1]


@pytest.mark.slow
def test_a_peer_that_refuses_too_often_makes_a_dead_letter_that_retry_revives(
    run: Run, write_config: WriteConfig, archive: Archive, capsys: pytest.CaptureFixture[str]
) -> None:
    archive.status = 0xA700
    config = write_config(send="attempts = 2")
    running = run(config)
    sent(running.node.receiver.port, images(2))
    assert running.until(lambda: running.node.outbox.counts() == {"dead": 1})
    assert main(["--config", str(config), "status"]) == 0
    name = short(str(images(1)[0].SeriesInstanceUID))
    assert f"{name} to pacs dead: 2 attempts, pacs: answered with status A700" in (
        capsys.readouterr().out
    )
    letter = running.node.storage.dead / name
    assert running.until(letter.exists)
    assert len([*letter.glob("*.dcm")]) == 2
    why = json.loads((letter / "why.json").read_text())
    assert why == {"series": name, "not sent to": {"pacs": "pacs: answered with status A700"}}
    archive.status = 0
    assert main(["--config", str(config), "retry", name]) == 0
    assert not letter.exists()
    assert running.until(lambda: running.node.queue.jobs("done") != [])
    assert len(archive.got) == 2
    assert not letter.exists()


@pytest.mark.slow
def test_the_letter_of_an_undelivered_series_goes_when_it_grows_and_is_made_anew(
    run: Run, write_config: WriteConfig, archive: Archive
) -> None:
    archive.status = 0xA700
    running = run(write_config(send="attempts = 1"))
    sent(running.node.receiver.port, images(3)[:2])
    letter = running.node.storage.dead / short(str(images(1)[0].SeriesInstanceUID))
    assert running.until(letter.exists)
    archive.status = 0
    sent(running.node.receiver.port, images(3)[2:])
    assert running.until(lambda: running.node.queue.jobs("done") != [])
    assert not letter.exists()


def test_a_series_that_cannot_be_worked_on_is_laid_by_with_its_reason(
    run: Run, write_config: WriteConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(work="attempts = 1")
    running = run(config)
    gap = images(5)
    del gap[2]
    sent(running.node.receiver.port, gap)
    assert running.until(lambda: running.node.queue.jobs("dead") != [])
    name = short(str(gap[0].SeriesInstanceUID))
    laid_by = running.node.storage.dead / name
    assert len([*laid_by.glob("*.dcm")]) == 4
    assert "1 slices are missing" in json.loads((laid_by / "why.json").read_text())["error"]
    assert main(["--config", str(config), "drop", name]) == 0
    assert not laid_by.exists()
    assert [*running.node.storage.received.iterdir()] == []
    assert main(["--config", str(config), "drop", name]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_an_attempt_and_is_replaced(
    run: Run, write_config: WriteConfig, archive: Archive
) -> None:
    running = run(write_config())
    worker = running.node.workers._running[0]
    time.sleep(2.5)  # younger ones are not replaced at once
    worker.process.kill()
    worker.process.join()
    sent(running.node.receiver.port, images(2))
    assert running.until(lambda: running.node.queue.jobs("done") != [])
    assert running.node.workers._running[0].process.pid != worker.process.pid


@pytest.mark.slow
def test_commitment_is_asked_for_and_what_is_not_kept_is_sent_again(
    run: Run, write_config: WriteConfig, archive: Archive
) -> None:
    archive.keeps = False
    running = run(write_config(peer="commitment = true"))
    archive.answers_to = running.node.receiver.port
    sent(running.node.receiver.port, images(2))
    assert running.until(lambda: len(archive.got) >= 4)
    archive.keeps = True
    assert running.until(lambda: running.node.queue.jobs("done") != [])
    assert {i.ReferencedSOPInstanceUID for i in archive.asked[-1].ReferencedSOPSequence} == {
        ds.SOPInstanceUID for ds in archive.got
    }


def test_who_asks_for_commitment_is_told_of_what_is_on_the_disk_alone(
    run: Run, write_config: WriteConfig, archive: Archive
) -> None:
    from poan_runtime.services.dicom_node.config import Peer
    from poan_runtime.services.dicom_node.outbox import Item
    from poan_runtime.services.dicom_node.send import Caller

    running = run(write_config(listen="commitment = true"))
    port = running.node.receiver.port
    sent(port, images(2))
    uids = [str(ds.SOPInstanceUID) for ds in images(3)]
    node = Peer(name="node", ae_title="POAN", host="localhost", port=port)
    items = [Item(instance_uid=u, class_uid=str(images(1)[0].SOPClassUID), file="") for u in uids]
    transactions: list[str] = []
    Caller("PACS").ask(node, items, transactions.append, lambda event: 0)
    assert running.until(lambda: len(archive.told) == 1)
    told = archive.told[0]
    assert told.TransactionUID == transactions[0]
    assert [i.ReferencedSOPInstanceUID for i in told.ReferencedSOPSequence] == uids[:2]
    failed = [(i.ReferencedSOPInstanceUID, i.FailureReason) for i in told.FailedSOPSequence]
    assert failed == [(uids[2], 0x0112)]


def test_metrics_and_health_are_on_loopback(
    run: Run, write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = run(write_config())
    monitor = Monitor(running.node, 0)
    try:
        sent(running.node.receiver.port, images(2) + images(1))
        assert running.until(lambda: running.node.queue.jobs("done") != [])
        text = fetched(monitor.port, "/metrics")[1]
        assert "\npoan_node_images 2\n" in text
        assert "\npoan_node_repeats 1\n" in text
        assert '\npoan_node_sent_total{peer="pacs"} 2\n' in text
        assert '\npoan_node_series{state="done"} 1\n' in text
        assert fetched(monitor.port, "/health") == (200, "well\n")
        monkeypatch.setattr(module, "free_bytes", lambda folder: -1)
        assert fetched(monitor.port, "/health") == (
            503,
            "the disk is full: images are refused\n",
        )
        assert monitor._server.server_address[0] == "127.0.0.1"
    finally:
        monitor.close()


def fetched(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_a_queue_on_a_full_disk_holds_the_answer_until_there_is_room(
    run: Run, write_config: WriteConfig, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sqlite3

    running = run(write_config())
    whole, refusals = running.node.queue.made, [1, 2, 3]

    def full(*arguments: Any) -> None:
        if refusals:
            refusals.pop()
            raise sqlite3.OperationalError("database or disk is full")
        whole(*arguments)

    monkeypatch.setattr(running.node.queue, "made", full)
    sent(running.node.receiver.port, images(2))

    def done() -> bool:
        return running.node.queue.jobs("done") != []

    def stepped() -> bool:
        try:
            running.node.step()
        except sqlite3.OperationalError:
            return False
        return done()

    assert until(stepped, 60)
    assert refusals == []
    assert len(archive.got) == 2


def test_old_series_are_removed_with_their_files(
    run: Run, write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SWEEP_S", 0.0)
    running = run(write_config(work="keep_hours = 0.0001"))
    sent(running.node.receiver.port, images(2))
    assert running.until(lambda: running.events("removed") != [])
    storage = running.node.storage
    assert [*storage.received.iterdir()] == [*storage.derived.iterdir()] == []
    assert running.node.queue.counts() == {"images": 0, "repeats": 0}


def test_two_nodes_do_not_share_a_folder(run: Run, write_config: WriteConfig) -> None:
    run(write_config())
    with pytest.raises(PoanError, match="another poan-node works here"):
        Node(read_config(write_config()), Log(io.StringIO()))


def started(config: Path) -> "subprocess.Popen[str]":
    line = [sys.executable, "-m", "poan_runtime.commands.node", "--config", str(config)]
    return subprocess.Popen(line, stderr=subprocess.PIPE, text=True)


def port_of(process: "subprocess.Popen[str]") -> int:
    """From the log of a process; its remainder is read in the background."""
    assert process.stderr is not None
    for line in process.stderr:
        if json.loads(line)["event"] == "started":
            return int(json.loads(line)["port"])
    raise AssertionError("it has ended")


@pytest.mark.slow
def test_kill_9_loses_nothing_and_sigterm_ends_in_peace(
    write_config: WriteConfig, archive: Archive
) -> None:
    config = write_config()
    process = started(config)
    assert sent(port_of(process), images(3)) == [0, 0, 0]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    process = started(config)
    port_of(process)
    assert until(lambda: len(archive.got) == 3, 60)
    assert set(archive.times().values()) == {1}
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(log.splitlines()[-1])["event"] == "ended"
    assert not os.path.exists(f"/proc/{process.pid}")


def test_what_pydicom_remarks_on_a_name_in_a_wrong_place_is_not_in_the_log(
    write_config: WriteConfig,
) -> None:
    one = images(1)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one.SeriesInstanceUID = "1.2.Secret^Name"
    process = started(write_config())
    assert process.stderr is not None
    assert sent(port_of(process), [one]) == [0]
    events = []
    for line in process.stderr:  # a line that is no JSON ends the test
        assert "Secret" not in line
        events.append(json.loads(line)["event"])
        if events[-1] in ("super-resolved", "failed"):
            break
    process.terminate()
    _, rest = process.communicate(timeout=60)
    assert "Secret" not in rest
    assert events[0] == "stored"
