"""The node's one SQLite file: WAL with synchronous=FULL, so that kill -9 loses nothing."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

SCHEMA = """
CREATE TABLE IF NOT EXISTS image (
    instance_uid TEXT PRIMARY KEY, series_uid TEXT NOT NULL, class_uid TEXT NOT NULL,
    file TEXT NOT NULL, sender TEXT NOT NULL, arrived REAL NOT NULL,
    acquisition INTEGER, promised INTEGER, repeats INTEGER NOT NULL DEFAULT 0,
    kept INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS image_series ON image (series_uid);
CREATE TABLE IF NOT EXISTS job (
    series_uid TEXT PRIMARY KEY, state TEXT NOT NULL, images INTEGER NOT NULL,
    taken INTEGER NOT NULL DEFAULT 0, last REAL NOT NULL, whole INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0, not_before REAL NOT NULL DEFAULT 0,
    error TEXT NOT NULL DEFAULT '');
CREATE INDEX IF NOT EXISTS job_state ON job (state, not_before);
CREATE TABLE IF NOT EXISTS delivery (
    id INTEGER PRIMARY KEY AUTOINCREMENT, series_uid TEXT NOT NULL, peer TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting', attempts INTEGER NOT NULL DEFAULT 0,
    not_before REAL NOT NULL DEFAULT 0, since REAL NOT NULL, error TEXT NOT NULL DEFAULT '',
    transaction_uid TEXT UNIQUE);
CREATE INDEX IF NOT EXISTS delivery_state ON delivery (state, peer, not_before);
CREATE INDEX IF NOT EXISTS delivery_series ON delivery (series_uid);
CREATE TABLE IF NOT EXISTS item (
    delivery INTEGER NOT NULL, instance_uid TEXT NOT NULL, class_uid TEXT NOT NULL,
    file TEXT NOT NULL, sent INTEGER NOT NULL DEFAULT 0, committed INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (delivery, instance_uid));
CREATE TABLE IF NOT EXISTS commitment (
    transaction_uid TEXT NOT NULL, title TEXT NOT NULL, body TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, not_before REAL NOT NULL DEFAULT 0,
    PRIMARY KEY (transaction_uid, title));
"""


class Database:
    """A SQLite file that any thread or process opens anew for each transaction."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self.transaction() as db:
            db.executescript(SCHEMA)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A connection; what was done with it is on the disk when the block ends, or undone."""
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
