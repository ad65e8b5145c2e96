"""The node's queue on disk: SQLite in WAL with synchronous=FULL, so that kill -9 loses nothing.

An image is received once, whatever number of times it is sent; a repeat is counted. A series
becomes a job when nothing more of it has come for a while. A job goes waiting -> working -> done,
back to waiting after a failure with a growing pause, and to dead after too many.
"""

import contextlib
import dataclasses
import sqlite3
from collections.abc import Iterator
from pathlib import Path

SCHEMA = """
CREATE TABLE IF NOT EXISTS image (
    instance_uid TEXT PRIMARY KEY, series_uid TEXT NOT NULL, file TEXT NOT NULL,
    sender TEXT NOT NULL, arrived REAL NOT NULL, repeats INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS image_series ON image (series_uid);
CREATE TABLE IF NOT EXISTS job (
    series_uid TEXT PRIMARY KEY, state TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
    not_before REAL NOT NULL DEFAULT 0, images INTEGER NOT NULL DEFAULT 0,
    error TEXT NOT NULL DEFAULT '');
"""
MOST_ATTEMPTS = 8
FIRST_PAUSE_S = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A series to work on. ``images`` says how many it had when it was taken."""

    series_uid: str
    state: str
    attempts: int
    images: int
    error: str


class Queue:
    """The queue in one SQLite file; each call is a transaction of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._transaction() as db:
            db.executescript(SCHEMA)

    def received(
        self, instance_uid: str, series_uid: str, file: str, sender: str, now: float
    ) -> bool:
        """Note an image whose file is on the disk; False, and counted, if it was there before."""
        with self._transaction() as db:
            new = db.execute(
                "INSERT INTO image (instance_uid, series_uid, file, sender, arrived) "
                "VALUES (?, ?, ?, ?, ?) ON CONFLICT (instance_uid) DO NOTHING",
                (instance_uid, series_uid, file, sender, now),
            ).rowcount
            if not new:
                db.execute(
                    "UPDATE image SET repeats = repeats + 1 WHERE instance_uid = ?", (instance_uid,)
                )
        return bool(new)

    def complete(self, now: float, quiet_s: float) -> list[str]:
        """Make jobs of the series that have been quiet, also of those that have grown since."""
        with self._transaction() as db:
            quiet = db.execute(
                "SELECT series_uid, COUNT(*) FROM image GROUP BY series_uid "
                "HAVING MAX(arrived) <= ?",
                (now - quiet_s,),
            ).fetchall()
            made = []
            for series, images in quiet:
                changed = db.execute(
                    "INSERT INTO job (series_uid, state, images) VALUES (?, 'waiting', ?) "
                    "ON CONFLICT (series_uid) DO UPDATE SET state = 'waiting', attempts = 0, "
                    "not_before = 0, images = excluded.images, error = '' "
                    "WHERE job.images < excluded.images AND job.state != 'working'",
                    (series, images),
                ).rowcount
                if changed:
                    made.append(series)
        return made

    def take(self, now: float) -> Job | None:
        """The next waiting job, now working."""
        with self._transaction() as db:
            row = db.execute(
                "UPDATE job SET state = 'working', attempts = attempts + 1 WHERE series_uid = "
                "(SELECT series_uid FROM job WHERE state = 'waiting' AND not_before <= ? "
                "ORDER BY not_before, rowid LIMIT 1) "
                "RETURNING series_uid, state, attempts, images, error",
                (now,),
            ).fetchone()
        return _job(row) if row else None

    def files(self, series_uid: str) -> list[str]:
        """The files of a series, by instance."""
        with self._transaction() as db:
            rows = db.execute(
                "SELECT file FROM image WHERE series_uid = ? ORDER BY instance_uid", (series_uid,)
            ).fetchall()
        return [row[0] for row in rows]

    def done(self, series_uid: str) -> None:
        """The job's results are with every peer."""
        with self._transaction() as db:
            db.execute(
                "UPDATE job SET state = 'done', error = '' WHERE series_uid = ?", (series_uid,)
            )

    def failed(self, series_uid: str, error: str, now: float) -> str:
        """Try again after a pause that doubles, or lay the job by; the state it has now."""
        with self._transaction() as db:
            (attempts,) = db.execute(
                "SELECT attempts FROM job WHERE series_uid = ?", (series_uid,)
            ).fetchone()
            state = "dead" if attempts >= MOST_ATTEMPTS else "waiting"
            db.execute(
                "UPDATE job SET state = ?, error = ?, not_before = ? WHERE series_uid = ?",
                (state, error, now + FIRST_PAUSE_S * 2 ** (attempts - 1), series_uid),
            )
        return state

    def recover(self) -> int:
        """After a crash: what was being worked on waits again; how many."""
        with self._transaction() as db:
            return db.execute(
                "UPDATE job SET state = 'waiting', not_before = 0 WHERE state = 'working'"
            ).rowcount

    def retry(self) -> int:
        """Give dead jobs another round; how many."""
        with self._transaction() as db:
            return db.execute(
                "UPDATE job SET state = 'waiting', attempts = 0, not_before = 0 "
                "WHERE state = 'dead'"
            ).rowcount

    def drop(self, series_uid: str) -> bool:
        """Forget a series that is not being worked on."""
        with self._transaction() as db:
            gone = db.execute(
                "DELETE FROM job WHERE series_uid = ? AND state != 'working'", (series_uid,)
            ).rowcount
            if gone:
                db.execute("DELETE FROM image WHERE series_uid = ?", (series_uid,))
        return bool(gone)

    def counts(self) -> dict[str, int]:
        """Images, repeats, and jobs by state."""
        with self._transaction() as db:
            images, repeats = db.execute(
                "SELECT COUNT(*), COALESCE(SUM(repeats), 0) FROM image"
            ).fetchone()
            states = db.execute("SELECT state, COUNT(*) FROM job GROUP BY state").fetchall()
        return {"images": images, "repeats": repeats, **dict(states)}

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """A connection of its own, for any thread or process; committed to the disk at the end."""
        with contextlib.closing(sqlite3.connect(self._path, timeout=60)) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.isolation_level = None
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
            if db.in_transaction:
                db.execute("COMMIT")


def _job(row: tuple[str, str, int, int, str]) -> Job:
    series_uid, state, attempts, images, error = row
    return Job(series_uid=series_uid, state=state, attempts=attempts, images=images, error=error)
