"""How long, how fast and in which precision to train."""

import math
from dataclasses import dataclass
from typing import Literal

WARM_UP_SHARE = 0.05


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train. The defaults are the paper's where it says (POAN, Sec. 3.1)."""

    steps: int = 200_000
    minutes: float | None = None
    """Stop after this many minutes; the schedule then follows the clock, not the steps."""
    cpu_minutes: float | None = None
    """The same in processor time of all threads, which other jobs on the machine do not use up."""
    batch: int = 96
    """Patches of a step, of all processes together."""
    patch: int = 64
    """Side of an LR patch, clamped to the smallest slice."""
    lr: float = 1e-4
    schedule: Literal["paper", "cosine"] = "paper"
    """Halved every fifth of the run (200 of 1000 epochs), or a cosine to zero."""
    warmup: int = 0
    clip: float | None = None
    """Largest norm of the gradient."""
    ema: float = 0.0
    """Decay of the exponential moving average of the weights; 0 for none."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    attention_from: float = 0.0
    """Share of the run before POAB joins: the backbone's steps cost less than half of the whole's.
    For networks with ``zero_start``, which are the same with and without it at that moment."""
    channels_last: bool = True
    compile: bool = False
    seed: int = 0
    log_every: int = 50
    validate_every: int = 1000


def learning_rate(config: TrainConfig, step: int, progress: float) -> float:
    """Learning rate at ``step`` (0-based), with ``progress`` in [0, 1) of the run behind it.

    The warm-up ends after its steps, or after `WARM_UP_SHARE` of the run if that is sooner.

    >>> learning_rate(TrainConfig(lr=8.0), 0, 0.45)
    2.0
    """
    done = max((step + 1) / config.warmup, progress / WARM_UP_SHARE) if config.warmup else 1.0
    warm = min(1.0, done)
    if config.schedule == "paper":
        return config.lr * warm * 0.5 ** math.floor(min(progress, 0.999) * 5)
    return config.lr * warm * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
