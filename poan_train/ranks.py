"""One training in several processes, all of which take the same steps and stop at the same one."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch

from poan_runtime.errors import PoanError

Item = TypeVar("Item")
Result = TypeVar("Result")
LONGEST_READING = timedelta(hours=12)
"""How long a process waits for the others to have read their volumes."""


@contextmanager
def data_parallel() -> Iterator[tuple[int, int, str]]:
    """(rank, world size, device), with a process group where torchrun started several.

    Within another it gives the same group.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if world == 1:
        yield 0, 1, device
        return
    if torch.distributed.is_initialized():
        yield torch.distributed.get_rank(), world, device
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    with others_there(world):
        torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield torch.distributed.get_rank(), world, device
    finally:
        torch.distributed.destroy_process_group()


def shared_out(
    items: Sequence[Item], work: Callable[[Item], Result], rank: int, world: int
) -> list[Result]:
    """``work`` on every item, in order: each process does every world-th and hears of the others'.

    None goes on before all are done.
    """
    own = [work(item) for item in items[rank::world]]
    if world == 1:
        return own
    parts: list[list[Result]] = [[] for _ in range(world)]
    with others_there(world):
        group = torch.distributed.new_group(backend="gloo", timeout=LONGEST_READING)
        torch.distributed.all_gather_object(parts, own, group)
    return [parts[index % world][index // world] for index in range(len(items))]


class ProcessGoneError(PoanError):
    """Another process of this training is not there any more."""


@contextmanager
def others_there(world: int) -> Iterator[None]:
    """Turn what the process group raises when a process is gone into a `ProcessGoneError`."""
    try:
        yield
    except RuntimeError as error:
        of_group = isinstance(error, torch.distributed.DistError) or "gloo" in str(error).lower()
        if world == 1 or not of_group:
            raise
        raise ProcessGoneError("another process of this training is gone") from None


class Interrupted(Exception):
    """SIGINT or SIGTERM came, and the checkpoint is written. The message is for the user."""


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """A function that says whether SIGINT or SIGTERM came. A second one ends the process at once.

    Outside of the main thread, where no handler can be set, it always says no.
    """
    came = False

    def note(number: int, _: object) -> None:
        nonlocal came
        came = True
        signal.signal(number, signal.default_int_handler)

    both = (signal.SIGINT, signal.SIGTERM)
    own = both if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, note) for number in own}
    try:
        yield lambda: came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def of_first_rank(
    progress: float, interrupted: Callable[[], bool], world: int
) -> tuple[float, bool]:
    """The first rank's progress, and whether it was interrupted, on every rank.

    Each rank has a clock of its own; were each to follow it, rates would differ, and a rank would
    wait for ever for one that stopped before.
    """
    said = [progress, float(interrupted())]
    if world > 1:
        shared = torch.tensor(said, dtype=torch.float64, device=_group_device())
        torch.distributed.broadcast(shared, 0)
        said = shared.tolist()
    return said[0], bool(said[1])


def mean_over_ranks(loss: torch.Tensor, world: int) -> float:
    """The mean of each rank's ``loss``, on every rank."""
    if world > 1:
        loss = loss.double()
        torch.distributed.all_reduce(loss)
        loss /= world
    return float(loss)


def _group_device() -> str:
    return "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
