"""One training in several processes, all of which take the same steps and stop at the same one."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def data_parallel() -> Iterator[tuple[int, int, str]]:
    """(rank, world size, device), with a process group where torchrun started several."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if world == 1:
        yield 0, 1, device
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield torch.distributed.get_rank(), world, device
    finally:
        torch.distributed.destroy_process_group()


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
