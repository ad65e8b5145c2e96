"""Derived instances on their way to peers, and what is promised about storage.

A delivery is one job's instances for one peer: waiting -> done, or with storage commitment
waiting -> asking -> done. A failure is tried again after a growing pause, and after too many of
them the delivery is dead.
"""

import dataclasses
import json
import sqlite3
from collections.abc import Iterable

from poan_runtime.services.dicom_node.database import Database
from poan_runtime.services.dicom_node.queue import Retry

References = tuple[tuple[str, str], ...]
"""(SOP class, SOP instance) of each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """A derived instance."""

    instance_uid: str
    class_uid: str
    file: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Delivery:
    """What a peer still lacks of one job; ``all_items`` is what it is to have in the end."""

    id: int
    series_uid: str
    peer: str
    unsent: tuple[Item, ...]
    all_items: tuple[Item, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Commitment:
    """A peer's question whether we keep these instances."""

    transaction_uid: str
    title: str
    references: References


class Outbox:
    """Deliveries and commitments; each call is a transaction of its own."""

    def __init__(self, database: Database, retry: Retry | None = None) -> None:
        self._database = database
        self._retry = retry or Retry()

    def take(self, peer: str, state: str, now: float) -> Delivery | None:
        """The next delivery to a peer in a state (``waiting`` to be sent, ``asking``)."""
        with self._database.transaction() as db:
            row = db.execute(
                "SELECT id, series_uid FROM delivery WHERE state = ? AND peer = ? "
                "AND not_before <= ? ORDER BY not_before, id LIMIT 1",
                (state, peer, now),
            ).fetchone()
            if row is None:
                return None
            rows = db.execute(
                "SELECT instance_uid, class_uid, file, sent FROM item WHERE delivery = ? "
                "ORDER BY file",
                (row[0],),
            ).fetchall()
        items = [(Item(instance_uid=i, class_uid=c, file=f), sent) for i, c, f, sent in rows]
        return Delivery(
            id=row[0],
            series_uid=row[1],
            peer=peer,
            unsent=tuple(item for item, sent in items if not sent),
            all_items=tuple(item for item, _ in items),
        )

    def sent(self, delivery: int, instance_uid: str) -> None:
        """The peer has said that it has the instance."""
        with self._database.transaction() as db:
            db.execute(
                "UPDATE item SET sent = 1 WHERE delivery = ? AND instance_uid = ?",
                (delivery, instance_uid),
            )

    def delivered(self, delivery: int, *, ask: bool) -> None:
        """The peer has everything; with ``ask`` it is to be asked for its commitment."""
        with self._database.transaction() as db:
            if ask:
                _set(db, delivery, "asking")
            else:
                _finish(db, delivery)

    def asked(self, delivery: int, transaction_uid: str, until: float) -> None:
        """The peer was asked; without an answer it is asked again after ``until``."""
        with self._database.transaction() as db:
            db.execute(
                "UPDATE delivery SET not_before = ?, transaction_uid = ? WHERE id = ?",
                (until, transaction_uid, delivery),
            )

    def answered(
        self, transaction_uid: str, kept: Iterable[str], failed: Iterable[str], now: float
    ) -> bool:
        """A peer's answer: what it does not keep is sent again. False if nobody had asked."""
        with self._database.transaction() as db:
            row = db.execute(
                "SELECT id FROM delivery WHERE transaction_uid = ?", (transaction_uid,)
            ).fetchone()
            if row is None:
                return False
            for column, instances in (("committed = 1", kept), ("sent = 0", failed)):
                db.executemany(
                    f"UPDATE item SET {column} WHERE delivery = ? AND instance_uid = ?",
                    [(row[0], instance) for instance in instances],
                )
            (left,) = db.execute(
                "SELECT COUNT(*) FROM item WHERE delivery = ? AND NOT committed", row
            ).fetchone()
            if left:
                error = f"the peer does not keep {left} instances"
                _fail(db, row[0], error, now, self._retry, state="waiting")
            else:
                _finish(db, row[0])
        return True

    def failed(self, delivery: int, error: str, now: float) -> str:
        """Try again after a pause, or lay it by; the state it has now ('' if it is gone)."""
        with self._database.transaction() as db:
            return _fail(db, delivery, error, now, self._retry)

    def retry(self, series_uid: str | None = None) -> int:
        """Give dead deliveries, or those of one series, another round; how many."""
        with self._database.transaction() as db:
            return db.execute(
                "UPDATE delivery SET state = 'waiting', attempts = 0, not_before = 0 "
                "WHERE state = 'dead' AND series_uid = COALESCE(?, series_uid)",
                (series_uid,),
            ).rowcount

    def deliveries(self, state: str) -> list[tuple[str, str, int, str]]:
        """(series, peer, attempts, error) of each delivery in a state."""
        with self._database.transaction() as db:
            return db.execute(
                "SELECT series_uid, peer, attempts, error FROM delivery WHERE state = ? "
                "ORDER BY id",
                (state,),
            ).fetchall()

    def recover(self, now: float, commitment_s: float) -> None:
        """Nothing waits longer than it may, though the clock was ahead when it was put off."""
        latest = now + max(self._retry.longest_pause_s, commitment_s)
        with self._database.transaction() as db:
            for table in ("delivery", "commitment"):
                db.execute(f"UPDATE {table} SET not_before = MIN(not_before, ?)", (latest,))

    def known_files(self) -> set[str]:
        """Every file of a derived instance that a delivery names."""
        with self._database.transaction() as db:
            return {row[0] for row in db.execute("SELECT file FROM item")}

    def files_of(self, series_uid: str) -> list[str]:
        """Every file of the derived instances of one series."""
        with self._database.transaction() as db:
            rows = db.execute(
                "SELECT DISTINCT file FROM item WHERE delivery IN "
                "(SELECT id FROM delivery WHERE series_uid = ?)",
                (series_uid,),
            ).fetchall()
        return [row[0] for row in rows]

    def counts(self) -> dict[str, int]:
        """Deliveries by state."""
        with self._database.transaction() as db:
            return dict(db.execute("SELECT state, COUNT(*) FROM delivery GROUP BY state"))

    def is_asked(self, question: Commitment) -> None:
        """Keep a peer's question until it is answered."""
        with self._database.transaction() as db:
            db.execute(
                "INSERT INTO commitment (transaction_uid, title, body) VALUES (?, ?, ?) "
                "ON CONFLICT DO NOTHING",
                (question.transaction_uid, question.title, json.dumps(question.references)),
            )

    def question(self, now: float) -> Commitment | None:
        """The next question to answer."""
        with self._database.transaction() as db:
            row = db.execute(
                "SELECT transaction_uid, title, body FROM commitment WHERE not_before <= ? "
                "ORDER BY not_before LIMIT 1",
                (now,),
            ).fetchone()
        if row is None:
            return None
        references = tuple((str(kind), str(instance)) for kind, instance in json.loads(row[2]))
        return Commitment(transaction_uid=row[0], title=row[1], references=references)

    def kept(self, references: References) -> dict[tuple[str, str], str | None]:
        """The file of each that we have, received or derived; None where we have it not."""
        found: dict[tuple[str, str], str | None] = {}
        with self._database.transaction() as db:
            for kind, instance in references:
                row = db.execute(
                    "SELECT file FROM image WHERE instance_uid = ?1 AND class_uid = ?2 UNION ALL "
                    "SELECT file FROM item WHERE instance_uid = ?1 AND class_uid = ?2 LIMIT 1",
                    (instance, kind),
                ).fetchone()
                found[kind, instance] = row[0] if row else None
        return found

    def kept_as_other(self, instance_uid: str) -> bool:
        """Whether we have an instance of that UID, of whatever class."""
        with self._database.transaction() as db:
            row = db.execute(
                "SELECT 1 FROM image WHERE instance_uid = ?1 UNION ALL "
                "SELECT 1 FROM item WHERE instance_uid = ?1 LIMIT 1",
                (instance_uid,),
            ).fetchone()
        return row is not None

    def promise(self, references: References) -> None:
        """From now on these are kept: their series are not swept."""
        with self._database.transaction() as db:
            db.executemany(
                "UPDATE image SET kept = 1 WHERE instance_uid = ?",
                [(instance,) for _, instance in references],
            )

    def told(self, question: Commitment) -> None:
        """The answer has reached the peer, or will never."""
        with self._database.transaction() as db:
            db.execute(
                "DELETE FROM commitment WHERE transaction_uid = ? AND title = ?",
                (question.transaction_uid, question.title),
            )

    def not_told(self, question: Commitment, now: float) -> bool:
        """Answer later; False if it was tried too often and is given up."""
        with self._database.transaction() as db:
            (attempts,) = db.execute(
                "UPDATE commitment SET attempts = attempts + 1 WHERE transaction_uid = ? "
                "AND title = ? RETURNING attempts",
                (question.transaction_uid, question.title),
            ).fetchone()
            db.execute(
                "UPDATE commitment SET not_before = ? WHERE transaction_uid = ? AND title = ?",
                (now + self._retry.pause_s(attempts), question.transaction_uid, question.title),
            )
        if attempts >= self._retry.attempts:
            self.told(question)
            return False
        return True


def _set(db: sqlite3.Connection, delivery: int, state: str) -> None:
    db.execute(
        "UPDATE delivery SET state = ?, not_before = 0, error = '' WHERE id = ?",
        (state, delivery),
    )


def _fail(
    db: sqlite3.Connection,
    delivery: int,
    error: str,
    now: float,
    retry: Retry,
    state: str | None = None,
) -> str:
    row = db.execute(
        "UPDATE delivery SET attempts = attempts + 1, error = ?, state = COALESCE(?, state) "
        "WHERE id = ? RETURNING attempts, state",
        (error, state, delivery),
    ).fetchone()
    if row is None:
        return ""
    attempts, state = row
    state = "dead" if attempts >= retry.attempts else state
    db.execute(
        "UPDATE delivery SET state = ?, not_before = ? WHERE id = ?",
        (state, now + retry.pause_s(attempts), delivery),
    )
    return str(state)


def _finish(db: sqlite3.Connection, delivery: int) -> None:
    """The delivery is done, and with the last one of its series the job is."""
    _set(db, delivery, "done")
    db.execute(
        "UPDATE job SET state = 'done' WHERE state = 'sending' AND series_uid = "
        "(SELECT series_uid FROM delivery WHERE id = ?) AND NOT EXISTS (SELECT 1 FROM delivery "
        "WHERE series_uid = job.series_uid AND state != 'done')",
        (delivery,),
    )
