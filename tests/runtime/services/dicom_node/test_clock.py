"""A wall clock that is set forth and back while the node waits: it waits as long as before."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pynetdicom import AE
from pynetdicom.sop_class import MRImageStorage  # type: ignore[attr-defined]

from poan_runtime.services.dicom_node.database import Database
from poan_runtime.services.dicom_node.outbox import Outbox
from poan_runtime.services.dicom_node.queue import Queue, Retry
from tests.runtime.services.dicom_node.conftest import WriteConfig
from tests.runtime.services.dicom_node.peer import HERE, Archive, Running, images, sent
from tests.runtime.services.dicom_node.test_queue import arrive, made

# pynetdicom leaves the socket of an association that it ends to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
HOUR_S = 3600.0
Run = Callable[[Path], Running]
SetClock = Callable[[float], None]


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> SetClock:
    """Sets the wall clock so many seconds off."""
    true = time.time
    return lambda off_s: monkeypatch.setattr(time, "time", lambda: true() + off_s)


def test_a_clock_set_forth_completes_no_series_and_cuts_off_no_guest(
    run: Run, write_config: WriteConfig, set_clock: SetClock
) -> None:
    config = write_config()
    config.write_text(config.read_text().replace("quiet_s = 0.3", "quiet_s = 600.0"))
    running = run(config)
    running.node._started -= HOUR_S  # no series is complete until it was up for long enough
    ae = AE(ae_title="SENDER")
    ae.add_requested_context(MRImageStorage)
    guest = ae.associate(HERE, running.node.receiver.port, ae_title="POAN")
    first, second = images(2)
    assert guest.send_c_store(first).Status == 0
    set_clock(HOUR_S)
    for _ in range(5):
        time.sleep(0.1)  # both sides look at their timers
        running.node.step()
    assert guest.send_c_store(second).Status == 0
    guest.release()
    assert [(state, count) for _, state, count, _, _ in running.node.queue.jobs()] == [
        ("arriving", 2)
    ]


def test_a_clock_set_back_delays_neither_a_series_nor_its_delivery(
    run: Run, write_config: WriteConfig, archive: Archive, set_clock: SetClock
) -> None:
    archive.stop()
    running = run(write_config())
    assert sent(running.node.receiver.port, images(2)) == [0, 0]
    set_clock(-HOUR_S)
    assert running.until(lambda: running.events("not sent") != [])
    set_clock(-2 * HOUR_S)
    archive.start()
    assert running.until(lambda: running.node.queue.jobs("done") != [])
    assert [*archive.times().values()] == [1, 1]


def test_after_a_start_with_a_clock_that_was_ahead_nothing_waits_for_it(
    database: Database, queue: Queue
) -> None:
    outbox = Outbox(database, Retry(longest_pause_s=60.0))
    made(queue, "a", now=HOUR_S)
    delivery = outbox.take("a", "waiting", HOUR_S)
    assert delivery is not None
    outbox.failed(delivery.id, "away", HOUR_S)
    arrive(queue, 5, HOUR_S, series_uid="2")
    queue.recover(10.0)
    outbox.recover(10.0, commitment_s=30.0)
    assert outbox.take("a", "waiting", 69.0) is None
    assert outbox.take("a", "waiting", 70.0) is not None
    assert queue.complete(now=14.0, quiet_s=5.0) == []
    assert queue.complete(now=15.0, quiet_s=5.0) == ["2"]
