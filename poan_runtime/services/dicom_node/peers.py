"""One thread for each peer, so that one that hangs holds up no other."""

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

from poan_runtime.services.dicom_node.clock import steady_s
from poan_runtime.services.dicom_node.config import Config, Peer
from poan_runtime.services.dicom_node.log import Log, short
from poan_runtime.services.dicom_node.outbox import Commitment, Delivery, Item, Outbox
from poan_runtime.services.dicom_node.receive import take_answer
from poan_runtime.services.dicom_node.send import (
    CLASS_CONFLICT,
    NO_SUCH_INSTANCE,
    Caller,
    SendError,
)

POLL_S = 0.2


class Sending:
    """Sends what waits for one peer, and asks for its commitment where that is wanted."""

    def __init__(
        self, peer: Peer, config: Config, outbox: Outbox, caller: Caller, log: Log
    ) -> None:
        self._peer, self._config, self._outbox = peer, config, outbox
        self._caller, self._log = caller, log
        self.sent = self.failures = 0

    def step(self) -> bool:
        """Do one thing if there is one."""
        waiting = self._outbox.take(self._peer.name, "waiting", steady_s())
        if waiting is not None:
            return self._tried(waiting, self._send)
        asking = self._outbox.take(self._peer.name, "asking", steady_s())
        return asking is not None and self._tried(asking, self._ask)

    def _tried(self, delivery: Delivery, act: Callable[[Delivery], None]) -> bool:
        try:
            act(delivery)
        except SendError as error:
            self.failures += 1
            state = self._outbox.failed(delivery.id, str(error), steady_s())
            self._log("not sent", series=short(delivery.series_uid), state=state, error=str(error))
        return True

    def _send(self, delivery: Delivery) -> None:
        def sent(item: Item) -> None:
            self._outbox.sent(delivery.id, item.instance_uid)
            self.sent += 1

        if delivery.unsent:
            self._caller.send(self._peer, delivery.unsent, self._config.storage, sent)
        self._outbox.delivered(delivery.id, ask=self._peer.commitment)
        self._log(
            "sent",
            series=short(delivery.series_uid),
            peer=self._peer.name,
            instances=len(delivery.unsent),
        )

    def _ask(self, delivery: Delivery) -> None:
        def about_to(transaction_uid: str) -> None:
            until = steady_s() + self._config.send.commitment_s
            self._outbox.asked(delivery.id, transaction_uid, until)

        self._caller.ask(
            self._peer,
            delivery.all_items,
            about_to,
            lambda event: take_answer(self._outbox, event, steady_s(), self._log),
        )


class Telling:
    """Answers those who asked whether we keep their instances."""

    def __init__(self, config: Config, outbox: Outbox, caller: Caller, log: Log) -> None:
        self._config, self._outbox, self._caller, self._log = config, outbox, caller, log

    def step(self) -> bool:
        """Answer one question if there is one."""
        question = self._outbox.question(steady_s())
        if question is None:
            return False
        peers = [p for p in self._config.peers if p.ae_title == question.title]
        if not peers:
            self._log("commitment not told", error="no [[peer]] has the AE title of the caller")
            self._outbox.told(question)
            return True
        try:
            self._tell(peers[0], question)
        except SendError as error:
            again = self._outbox.not_told(question, steady_s())
            self._log("commitment not told", error=str(error), again=again)
        return True

    def _tell(self, peer: Peer, question: Commitment) -> None:
        files = self._outbox.kept(question.references)
        kept = tuple(r for r, file in files.items() if file and self._is_there(file))
        failed = {r: NO_SUCH_INSTANCE for r in files if r not in kept}
        for reference in failed:
            if self._outbox.kept_as_other(reference[1]):
                failed[reference] = CLASS_CONFLICT
        self._outbox.promise(kept)
        self._caller.tell(peer, question.transaction_uid, kept, failed)
        self._outbox.told(question)
        self._log("commitment answered", peer=peer.name, kept=len(kept), failed=len(failed))

    def _is_there(self, file: str) -> bool:
        folder = self._config.storage
        return any(path.is_file() for path in (folder / "in" / file, folder / Path(file)))


class Loop:
    """Steps again and again in a thread of its own, with a rest where there is nothing to do."""

    def __init__(self, name: str, step: Callable[[], bool], log: Log) -> None:
        self._step, self._log, self._ended = step, log, threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._thread.is_alive()

    def close(self, patience_s: float = 10.0) -> None:
        """End after the step at hand."""
        self._ended.set()
        self._thread.join(patience_s)

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                busy = self._step()
            except (OSError, sqlite3.OperationalError) as error:  # a full disk, say
                self._log("held up", where=self._thread.name, error=type(error).__name__)
                busy = False
            if not busy:
                self._ended.wait(POLL_S)
