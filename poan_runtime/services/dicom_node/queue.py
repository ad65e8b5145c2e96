"""What came in, and what becomes of each series.

An image is received once, whatever number of times it is sent; a repeat is counted. Its series
is a job: arriving -> waiting -> working -> sending -> done. A failure sends it back to waiting
with a growing pause, too many to dead. A series that grows begins anew.
"""

import dataclasses
import sqlite3
from collections.abc import Sequence

from poan_runtime.services.dicom_node.database import Database


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retry:
    """How often and how late what failed is tried again; the pause doubles each time.

    >>> [Retry(first_pause_s=5, longest_pause_s=15).pause_s(n) for n in (1, 2, 3)]
    [5, 10, 15]
    """

    first_pause_s: float = 5.0
    longest_pause_s: float = 600.0
    attempts: int = 8

    def pause_s(self, attempts: int) -> float:
        """After the ``attempts``-th failure."""
        doubled: float = self.first_pause_s * 2 ** min(attempts - 1, 60)
        return min(self.longest_pause_s, doubled)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arrival:
    """An image whose file is on the disk.

    ``promised`` is how many images the header says its acquisition, or the series, has;
    ``arrived`` the wall clock when it came.
    """

    instance_uid: str
    series_uid: str
    class_uid: str
    file: str
    sender: str
    acquisition: int | None = None
    promised: int | None = None
    arrived: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A series to work on: its files by instance, the wall clock when the last of them came."""

    series_uid: str
    attempts: int
    files: tuple[str, ...]
    sender: str
    arrived: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """Derived instances for a peer: (instance, class, file) of each."""

    peer: str
    instances: tuple[tuple[str, str, str], ...]


class Queue:
    """Images and jobs; each call is a transaction of its own."""

    def __init__(self, database: Database, retry: Retry | None = None) -> None:
        self._database = database
        self._retry = retry or Retry()

    def received(self, image: Arrival, now: float) -> bool:
        """Note an image; False, and counted, if it was there before."""
        with self._database.transaction() as db:
            new = db.execute(
                "INSERT INTO image (instance_uid, series_uid, class_uid, file, sender, arrived, "
                "acquisition, promised) VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (instance_uid) DO NOTHING",
                (
                    *(image.instance_uid, image.series_uid, image.class_uid, image.file),
                    *(image.sender, image.arrived, image.acquisition, image.promised),
                ),
            ).rowcount
            if new:
                _grow(db, image.series_uid, now)
            else:
                db.execute(
                    "UPDATE image SET repeats = repeats + 1 WHERE instance_uid = ?",
                    (image.instance_uid,),
                )
        return bool(new)

    def complete(self, now: float, quiet_s: float, *, trust_count: bool = False) -> list[str]:
        """Make jobs of the series that are quiet or whole, also of those that have grown."""
        with self._database.transaction() as db:
            rows = db.execute(
                "UPDATE job SET state = 'waiting', taken = images, attempts = 0, not_before = 0, "
                "error = '' WHERE state != 'working' AND taken < images "
                "AND (last <= ? OR (? AND whole)) RETURNING series_uid",
                (now - quiet_s, trust_count),
            ).fetchall()
        return [row[0] for row in rows]

    def take(self, now: float) -> Job | None:
        """The next waiting job, now working."""
        with self._database.transaction() as db:
            row = db.execute(
                "UPDATE job SET state = 'working', attempts = attempts + 1, taken = images "
                "WHERE series_uid = (SELECT series_uid FROM job WHERE state = 'waiting' "
                "AND not_before <= ? ORDER BY not_before, last LIMIT 1) "
                "RETURNING series_uid, attempts",
                (now,),
            ).fetchone()
            if row is None:
                return None
            images = db.execute(
                "SELECT file, sender, arrived FROM image WHERE series_uid = ? "
                "ORDER BY instance_uid",
                (row[0],),
            ).fetchall()
        return Job(
            series_uid=row[0],
            attempts=row[1],
            files=tuple(file for file, _, _ in images),
            sender=images[0][1],
            arrived=max(arrived for _, _, arrived in images),
        )

    def made(self, series_uid: str, results: Sequence[Result], now: float) -> None:
        """The job's derived instances wait for their peers in place of those made before."""
        with self._database.transaction() as db:
            _forget_deliveries(db, series_uid)
            for result in results:
                delivery = db.execute(
                    "INSERT INTO delivery (series_uid, peer, since) VALUES (?, ?, ?)",
                    (series_uid, result.peer, now),
                ).lastrowid
                db.executemany(
                    "INSERT INTO item (delivery, instance_uid, class_uid, file) "
                    "VALUES (?, ?, ?, ?)",
                    [(delivery, *instance) for instance in result.instances],
                )
            _set_state(db, series_uid, "sending" if results else "done")

    def unmatched(self, series_uid: str) -> None:
        """No rule wants the series."""
        with self._database.transaction() as db:
            _forget_deliveries(db, series_uid)
            _set_state(db, series_uid, "unmatched")

    def failed(self, series_uid: str, error: str, now: float) -> str:
        """Try again after a pause, or lay the job by; the state it has now."""
        with self._database.transaction() as db:
            (attempts,) = db.execute(
                "SELECT attempts FROM job WHERE series_uid = ?", (series_uid,)
            ).fetchone()
            state = "dead" if attempts >= self._retry.attempts else "waiting"
            db.execute(
                "UPDATE job SET state = ?, error = ?, not_before = ? WHERE series_uid = ?",
                (state, error, now + self._retry.pause_s(attempts), series_uid),
            )
        return state

    def recover(self, now: float) -> int:
        """After a crash: what was being worked on waits again; how many.

        A crash is no failure of the job, so the attempt does not count. Where the clock was ahead
        when the last process started, nothing waits until it is so late again.
        """
        with self._database.transaction() as db:
            db.execute(
                "UPDATE job SET last = MIN(last, ?), not_before = MIN(not_before, ?)",
                (now, now + self._retry.longest_pause_s),
            )
            return db.execute(
                "UPDATE job SET state = 'waiting', not_before = 0, "
                "attempts = MAX(0, attempts - 1) WHERE state = 'working'"
            ).rowcount

    def retry(self, series_uid: str | None = None) -> int:
        """Give dead jobs, or the one, another round; how many."""
        with self._database.transaction() as db:
            return db.execute(
                "UPDATE job SET state = 'waiting', attempts = 0, not_before = 0 "
                "WHERE state = 'dead' AND series_uid = COALESCE(?, series_uid)",
                (series_uid,),
            ).rowcount

    def drop(self, series_uid: str) -> tuple[list[str], list[str]]:
        """Forget a series that is not being worked on: its received files, its derived ones."""
        with self._database.transaction() as db:
            gone = db.execute(
                "DELETE FROM job WHERE series_uid = ? AND state != 'working'", (series_uid,)
            ).rowcount
            if not gone:
                return [], []
            received = _files(db, series_uid)
            derived = db.execute(
                "SELECT DISTINCT file FROM item WHERE delivery IN "
                "(SELECT id FROM delivery WHERE series_uid = ?)",
                (series_uid,),
            ).fetchall()
            db.execute("DELETE FROM image WHERE series_uid = ?", (series_uid,))
            _forget_deliveries(db, series_uid)
        return received, [row[0] for row in derived]

    def files(self, series_uid: str) -> list[str]:
        """The files of a series, by instance."""
        with self._database.transaction() as db:
            return _files(db, series_uid)

    def finished_before(self, moment: float) -> list[str]:
        """Series that are done or unmatched and whose last image came before ``moment``.

        Not those with an image that a peer was promised to be kept.
        """
        with self._database.transaction() as db:
            rows = db.execute(
                "SELECT series_uid FROM job WHERE state IN ('done', 'unmatched') "
                "AND taken = images AND last < ? AND NOT EXISTS (SELECT 1 FROM image "
                "WHERE image.series_uid = job.series_uid AND kept)",
                (moment,),
            ).fetchall()
        return [row[0] for row in rows]

    def jobs(self, state: str | None = None) -> list[tuple[str, str, int, int, str]]:
        """(series, state, images, attempts, error) of each job, the oldest first."""
        with self._database.transaction() as db:
            return db.execute(
                "SELECT series_uid, state, images, attempts, error FROM job "
                "WHERE state = COALESCE(?, state) ORDER BY last",
                (state,),
            ).fetchall()

    def known_files(self) -> set[str]:
        """Every file of an image that was received."""
        with self._database.transaction() as db:
            return {row[0] for row in db.execute("SELECT file FROM image")}

    def counts(self) -> dict[str, int]:
        """Images, repeats, and jobs by state."""
        with self._database.transaction() as db:
            images, repeats = db.execute(
                "SELECT COUNT(*), COALESCE(SUM(repeats), 0) FROM image"
            ).fetchone()
            states = db.execute("SELECT state, COUNT(*) FROM job GROUP BY state").fetchall()
        return {"images": images, "repeats": repeats, **dict(states)}


def _grow(db: sqlite3.Connection, series_uid: str, now: float) -> None:
    """One more image of a series; whole if each acquisition has what its header promised."""
    rows = db.execute(
        "SELECT COUNT(*), MAX(promised) FROM image WHERE series_uid = ? GROUP BY acquisition",
        (series_uid,),
    ).fetchall()
    whole = all(promised is not None and count >= promised for count, promised in rows)
    db.execute(
        "INSERT INTO job (series_uid, state, images, last, whole) VALUES (?, 'arriving', 1, ?, ?) "
        "ON CONFLICT (series_uid) DO UPDATE SET images = images + 1, last = excluded.last, "
        "whole = excluded.whole",
        (series_uid, now, whole),
    )


def _files(db: sqlite3.Connection, series_uid: str) -> list[str]:
    rows = db.execute(
        "SELECT file FROM image WHERE series_uid = ? ORDER BY instance_uid", (series_uid,)
    )
    return [row[0] for row in rows]


def _forget_deliveries(db: sqlite3.Connection, series_uid: str) -> None:
    db.execute(
        "DELETE FROM item WHERE delivery IN (SELECT id FROM delivery WHERE series_uid = ?)",
        (series_uid,),
    )
    db.execute("DELETE FROM delivery WHERE series_uid = ?", (series_uid,))


def _set_state(db: sqlite3.Connection, series_uid: str, state: str) -> None:
    db.execute(
        "UPDATE job SET state = ?, attempts = 0, error = '' WHERE series_uid = ?",
        (state, series_uid),
    )
