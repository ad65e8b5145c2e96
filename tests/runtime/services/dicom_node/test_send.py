"""Sending to a peer while the machine is busy."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from pynetdicom.dimse import DIMSEServiceProvider

from poan_runtime.services.dicom_node import send
from poan_runtime.services.dicom_node.checkpoint import Checkpoint
from poan_runtime.services.dicom_node.config import Peer
from poan_runtime.services.dicom_node.outbox import Item
from poan_runtime.services.dicom_node.send import Caller
from tests.runtime.images.dicom.made import write
from tests.runtime.services.dicom_node.peer import HERE, Archive, images

BUSY_S = 0.1
"""As long as a peer on loopback takes to answer, some times over."""


class SlowToGoOn(Checkpoint):
    """The reactor gets no time after it has looked whether it must stop."""

    def wait(self, timeout: float | None = None) -> bool:
        passed = super().wait(timeout)
        time.sleep(BUSY_S)
        return passed


def test_no_answer_is_lost_where_reactor_and_sender_get_no_time_of_the_machine(
    tmp_path: Path, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    get_msg = DIMSEServiceProvider.get_msg

    def slow_to_ask(self: DIMSEServiceProvider, block: bool = False) -> Any:
        time.sleep(3 * BUSY_S * block)
        return get_msg(self, block)

    monkeypatch.setattr(send, "Checkpoint", SlowToGoOn)
    monkeypatch.setattr(DIMSEServiceProvider, "get_msg", slow_to_ask)
    peer = Peer(name="pacs", ae_title="PACS", host=HERE, port=archive.port)
    made = images(3)
    items = [
        Item(
            instance_uid=str(ds.SOPInstanceUID),
            class_uid=str(ds.SOPClassUID),
            file=write(ds, tmp_path / f"{n}.dcm").name,
        )
        for n, ds in enumerate(made)
    ]
    answered: list[Item] = []
    Caller("POAN", timeout_s=3.0).send(peer, items, tmp_path, answered.append)
    assert answered == items
    assert [*archive.times().values()] == [1] * 3


def test_a_checkpoint_that_is_closed_lets_nobody_pass_and_who_closes_it_knows_that_one_stands() -> (
    None
):
    checkpoint, rounds, ended = Checkpoint(), [0], threading.Event()

    def reactor() -> None:
        while not ended.is_set():
            checkpoint.wait()
            time.sleep(0.002)
            rounds[0] += 1

    thread = threading.Thread(target=reactor, daemon=True)
    thread.start()
    for _ in range(20):
        checkpoint.clear()
        before = rounds[0]
        time.sleep(0.005)
        assert rounds[0] == before
        checkpoint.set()
    ended.set()
    thread.join(5)
    assert rounds[0] > 0
    assert not thread.is_alive()
