"""What a training says while it runs: a bar or lines, a JSON line and TensorBoard scalars."""

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from poan_runtime.errors import PoanError

EVERY_SECONDS = 30.0
"""Least time between two lines where standard error is no terminal."""


class Log:
    """Records of a run, as ``out`` with the suffix .jsonl and a TensorBoard folder beside it.

    The bar counts per cent of the budget, be it steps or minutes. Without a terminal there is a
    line every EVERY_SECONDS, record or not, and at each validation. Not ``shown``, it is neither
    bar nor line; ``quiet`` writes nothing at all.
    """

    def __init__(self, out: Path, *, quiet: bool, start: int, shown: bool = True) -> None:
        self.quiet, self.shown, self.place = quiet, shown, out.with_suffix(".jsonl")
        if quiet:
            return
        out.parent.mkdir(parents=True, exist_ok=True)
        self.hook, threading.excepthook = threading.excepthook, self._quiet_thread
        with self._one_line():
            self.lines = self.place.open("a" if start else "w")
            self.board = SummaryWriter(str(out.with_suffix("")) + "_tensorboard", purge_step=start)
        form = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
        hidden = None if shown else True  # None: where there is no terminal
        self.bar = tqdm(total=100, unit="%", dynamic_ncols=True, disable=hidden, bar_format=form)
        self.began, self.first, self.said = time.monotonic(), 0.0, float("-inf")

    def __enter__(self) -> "Log":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.quiet:
            return
        self.bar.close()
        try:
            with self._one_line(), contextlib.ExitStack() as stack:
                stack.callback(self.lines.close)
                stack.callback(self.board.close)
        except PoanError:
            if error is None:
                raise
        finally:
            threading.excepthook = self.hook

    @contextlib.contextmanager
    def _one_line(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise PoanError(f"{self.place}: cannot be written: {error.strerror}") from None

    def _quiet_thread(self, hooked: threading.ExceptHookArgs) -> None:
        """TensorBoard's thread hands what it meets to the next record; it need not shout too."""
        if not isinstance(hooked.exc_value, OSError):
            self.hook(hooked)

    def write(self, step: int, seconds: float, progress: float, **values: float) -> None:
        """One record at ``step``, with ``progress`` in [0, 1] of the run behind it."""
        if self.quiet:
            return
        record = {"step": step, "seconds": round(seconds, 1), **values, "progress": progress}
        with self._one_line():
            self.lines.write(json.dumps(record) + "\n")
            self.lines.flush()
            for name, value in values.items():
                self.board.add_scalar(name, value, step)
        if self.shown and not self.bar.disable:
            self.bar.set_postfix({"step": step, **{k: f"{v:.4g}" for k, v in values.items()}})
            self.bar.update(100 * min(progress, 1) - self.bar.n)
        self.tell(step, progress, **values)

    def tell(self, step: int, progress: float, **values: float) -> None:
        """Without a terminal a line, where the last is long ago; for steps without a record."""
        if not self.quiet and self.shown and self.bar.disable:
            self._line(step, progress, values)

    def _line(self, step: int, progress: float, values: dict[str, float]) -> None:
        now = time.monotonic()
        if self.said == float("-inf"):
            self.first = progress
        if now - self.said < EVERY_SECONDS and "tile_psnr" not in values:
            return
        self.said, done = now, progress - self.first
        left = (now - self.began) * (1 - progress) / done if done > 0 else None
        rest = f", {duration(left)} left" if left is not None and progress < 1 else ""
        said = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        line = f"step {step}, {100 * min(progress, 1):.1f} %{rest}: {said}\n"
        sys.stderr.write(line)
        sys.stderr.flush()


def duration(seconds: float) -> str:
    """Seconds in words of at most two units.

    >>> duration(42), duration(125), duration(7260)
    ('42 s', '2 min', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
