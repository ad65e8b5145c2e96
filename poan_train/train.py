"""The training loop: L1, Adam, EMA, mixed precision, exact resume."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from poan_runtime.errors import PoanError
from poan_train import networks
from poan_train.acquire import LRModel
from poan_train.checkpoint import Facts, read_checkpoint, save_checkpoint
from poan_train.config import TrainConfig, learning_rate
from poan_train.data import Ahead, Pair, PatchSampler, fixed_tiles
from poan_train.degrade import GRID, sinc
from poan_train.log import Log
from poan_train.metrics import psnr
from poan_train.networks.poan import POAB
from poan_train.ranks import (
    Interrupted,
    ProcessGoneError,
    data_parallel,
    interruptible,
    mean_over_ranks,
    of_first_rank,
    others_there,
)
from poan_train.resample import cubic_matrix
from poan_train.resume import continued

VALIDATION_TILE = 32
"""LR side of the tiles that a training is validated on, less where slices are smaller."""
VALIDATION_TILES = 56
"""How many: each draws a scan of its own, so few would tell of a few scans."""
DENORMAL = 1e-310
"""A double below the smallest normal one."""


def autocast_type(precision: str, device: str) -> torch.dtype | None:
    """The half type to compute in: ``auto`` takes bf16 where the device computes in it."""
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported() if device == "cuda" else _cpu_has_bf16()
        return torch.bfloat16 if fast else None
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def _cpu_has_bf16() -> bool:
    capabilities = torch.backends.cpu.get_cpu_capability()
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return capabilities.startswith("AVX512") and "avx512_bf16" in flags


@dataclass(kw_only=True)
class Run:
    """Everything that changes while training; ``state`` and ``restore`` round-trip it exactly."""

    network: nn.Module
    average: nn.Module
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    progress: float = 0.0
    """Share of the run that is behind, as the first rank sees it."""
    stopped: bool = False
    """Whether a signal ended it before its budget."""

    def state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
        }

    def restore(self, average: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(average)
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.cpu_seconds = state.get("cpu_seconds", 0.0)

    def prepare(self, rate: float, config: TrainConfig) -> None:
        """Set the learning rate of the next step, and whether POAB takes part."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.bypass_attention(self.progress < config.attention_from)

    def bypass_attention(self, bypass: bool) -> None:
        for module in (*self.network.modules(), *self.average.modules()):
            if isinstance(module, POAB):
                module.bypass = bypass

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        decay = min(decay, (1 + self.step) / (10 + self.step))
        weights = self.network.state_dict()
        for name, mean in self.average.state_dict().items():
            if mean.is_floating_point():
                mean.lerp_(weights[name], 1 - decay)
            else:  # a counter, as BatchNorm has
                mean.copy_(weights[name])


def train(
    facts: Facts,
    config: TrainConfig,
    pairs: list[Pair],
    validation: list[Pair],
    out: Path,
    *,
    resume: bool = False,
    allow_changes: bool = False,
    init: Path | None = None,
    shown: bool = True,
) -> Facts:
    """Train the network that ``facts`` describes on ``pairs`` and write the checkpoint ``out``.

    Metrics go to ``out`` with the suffix .jsonl and to a TensorBoard folder beside it, and where
    ``shown`` to the terminal. Raises
    PoanError when the loss stops being finite (the checkpoint of the last validation is kept) or
    when what is resumed is another training, and Interrupted, with ``out`` written, on SIGINT or
    SIGTERM.
    """
    with (
        denormals_flushed(),
        data_parallel() as (rank, world, device),
        interruptible() as interrupted,
    ):
        if config.batch < world:
            raise PoanError(
                f"--batch {config.batch}: expected a patch for each of {world} processes"
            )
        run = _start(facts, config, device, resume, out, init)
        if resume:
            facts = continued(out, read_checkpoint(out)[0], facts, config, allow_changes)
        check = _validation(facts, validation or pairs, device)
        with (
            Ahead(_sampler(facts, config, pairs, rank, world)) as ahead,
            Log(out, quiet=rank > 0, start=run.step, shown=shown) as log,
        ):
            try:
                with others_there(world):
                    step = _stepper(run, config, device, world)
                    for loss in _losses(run, config, step, ahead, interrupted, device, world):
                        rate = run.optimiser.param_groups[0]["lr"]
                        if run.step % config.log_every == 0 or run.step == 1:
                            log.write(run.step, run.seconds, run.progress, loss=loss, lr=rate)
                        else:
                            log.tell(run.step, run.progress, loss=loss, lr=rate)
                        if not math.isfinite(loss):
                            raise PoanError(_diverged(loss, run.step, out))
                        if run.step % config.validate_every == 0 and rank == 0:
                            facts = _save(facts, config, run, check, log, out)
            except ProcessGoneError as gone:
                if rank == 0:
                    _save(facts, config, run, None, log, out)
                raise _without(gone, run.step, out) from None
            if rank == 0:
                facts = _save(facts, config, run, None if run.stopped else check, log, out)
    if run.stopped:
        raise Interrupted(f"stopped at step {run.step}; {out} holds it, and --resume goes on")
    return facts


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Numbers below the normal ones count as 0 inside the block, in this thread.

    Without it a step takes ten times longer once weights die out. Afterwards they count as before:
    the program around a training may need them.
    """
    before = bool(torch.tensor(DENORMAL, dtype=torch.float64).mul(1.0) == 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def _losses(
    run: Run,
    config: TrainConfig,
    step: Callable[[torch.Tensor, torch.Tensor], float],
    ahead: Ahead,
    interrupted: Callable[[], bool],
    device: str,
    world: int,
) -> Iterator[float]:
    """Take steps and give the loss of each, until the budget ends or a signal came."""
    began = time.monotonic() - run.seconds
    cpu_began = time.process_time() - run.cpu_seconds
    while True:
        run.seconds = time.monotonic() - began
        run.cpu_seconds = time.process_time() - cpu_began
        run.progress, run.stopped = of_first_rank(_progress(config, run), interrupted, world)
        if run.progress >= 1 or run.stopped:
            return
        run.prepare(learning_rate(config, run.step, run.progress), config)
        loss = step(*(torch.from_numpy(a).to(device) for a in ahead.batch(run.step)))
        run.step += 1
        run.update_average(config.ema)
        yield loss


def _without(gone: ProcessGoneError, step: int, out: Path) -> ProcessGoneError:
    """What to do where a process is lost at ``step``."""
    return ProcessGoneError(
        f"{gone}, at step {step}; --resume goes on from {out}, on as many processes as there are"
    )


def _sampler(
    facts: Facts, config: TrainConfig, pairs: list[Pair], rank: int, world: int
) -> PatchSampler:
    model = LRModel.of_facts(facts.degradation)
    return PatchSampler(
        pairs,
        facts.scale,
        config.patch,
        config.batch,
        config.seed,
        rank=rank,
        world=world,
        grid=GRID[model.method],
        acquisition=model.acquisition,
    )


def _diverged(loss: float, step: int, out: Path) -> str:
    kept = f"{out} is that of the last validation" if out.is_file() else "no checkpoint yet"
    advice = "try a smaller --lr, --clip 1, or --precision fp32"
    return f"the loss is {loss} at step {step}; {kept}; {advice}"


def _progress(config: TrainConfig, run: Run) -> float:
    if config.minutes is not None:
        return run.seconds / (60 * config.minutes)
    if config.cpu_minutes is not None:
        return run.cpu_seconds / (60 * config.cpu_minutes)
    return run.step / config.steps if config.steps else 1.0


def _start(
    facts: Facts, config: TrainConfig, device: str, resume: bool, out: Path, init: Path | None
) -> Run:
    torch.manual_seed(config.seed)
    network_config = networks.config_from_json(facts.arch, facts.network)
    network = networks.build(facts.arch, network_config)
    if init:
        load_matching(network, read_checkpoint(init)[1], init)
    average = networks.build(facts.arch, network_config)
    average.load_state_dict(network.state_dict())
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    network = network.to(device, memory_format=layout)  # type: ignore[call-overload]
    average = average.to(device, memory_format=layout).eval()  # type: ignore[call-overload]
    optimiser = torch.optim.Adam(network.parameters(), lr=config.lr, betas=(0.9, 0.999), eps=1e-8)
    use_scaler = autocast_type(config.precision, device) is torch.float16
    scaler = torch.amp.GradScaler(device, enabled=use_scaler)
    run = Run(network=network, average=average, optimiser=optimiser, scaler=scaler)
    if resume:
        saved, weights, state = read_checkpoint(out)
        same = networks.config_from_json(saved.arch, saved.network) == network_config
        if saved.arch != facts.arch or not same:
            raise PoanError(f"{out}: holds {saved.arch} x{saved.scale} of another configuration")
        if state is None:
            raise PoanError(f"{out}: has no training state to resume from")
        run.restore(weights, state)
    return run


def load_matching(network: nn.Module, weights: dict[str, torch.Tensor], source: Path) -> int:
    """Start from another checkpoint: copy every tensor whose name and shape agree.

    Returns how many were copied, so a tail of another scale starts fresh. Raises PoanError when
    nothing fits.
    """
    own = network.state_dict()
    fitting = {k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}
    if not fitting:
        raise PoanError(f"{source}: not one tensor fits this network")
    network.load_state_dict(fitting, strict=False)
    return len(fitting)


def _stepper(
    run: Run, config: TrainConfig, device: str, world: int
) -> Callable[[torch.Tensor, torch.Tensor], float]:
    """A function from a rank's patches to the loss of all ranks' batch, that takes one step.

    Ranks may hold unequal numbers of patches. All that they tell each other comes before the
    weights change, so that a step in which one is lost has not happened.
    """
    half = autocast_type(config.precision, device)
    model: nn.Module = run.network
    if world > 1:
        model = DistributedDataParallel(model, find_unused_parameters=config.attention_from > 0)
    forward: Callable[[torch.Tensor], torch.Tensor] = (
        torch.compile(model) if config.compile else model
    )

    def step(lr: torch.Tensor, hr: torch.Tensor) -> float:
        if config.channels_last:
            lr = lr.to(memory_format=torch.channels_last)
        with torch.autocast(device, half or torch.bfloat16, enabled=half is not None):
            sr = forward(lr)
        loss = (sr.float() - hr).abs().mean() * (world * len(lr) / config.batch)
        run.optimiser.zero_grad(set_to_none=True)
        run.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        mean = mean_over_ranks(loss.detach(), world)
        run.scaler.unscale_(run.optimiser)
        if config.clip:
            nn.utils.clip_grad_norm_(run.network.parameters(), config.clip)
        run.scaler.step(run.optimiser)
        run.scaler.update()
        return mean

    return step


def _validation(
    facts: Facts, pairs: list[Pair], device: str
) -> Callable[[nn.Module], dict[str, float]]:
    """A function from a network to its PSNR on fixed tiles, beside bicubic's and sinc's.

    The tiles are the same whatever the training's patch, so that runs with other patches compare.
    """
    side = min(VALIDATION_TILE, *(min(p.lr.shape[1:]) for p in pairs))
    model = LRModel.of_facts(facts.degradation)
    lr, hr = fixed_tiles(pairs, facts.scale, side, VALIDATION_TILES, model.acquisition)
    grid = GRID[model.method]
    up = cubic_matrix(lr.shape[-1], hr.shape[-1], grid=grid)
    bicubic = (up @ lr[:, 0] @ up.T).astype(np.float32)
    rivals = {
        "tile_psnr_bicubic": psnr(hr[:, 0], bicubic, "slice"),
        "tile_psnr_sinc": psnr(hr[:, 0], sinc(lr[:, 0], facts.scale, grid), "slice"),
    }

    @torch.no_grad()
    def check(network: nn.Module) -> dict[str, float]:
        parts = [network(part.to(device)).cpu() for part in torch.split(torch.from_numpy(lr), 8)]
        sr = torch.cat(parts).numpy()[:, 0]
        return {"tile_psnr": psnr(hr[:, 0], sr, "slice"), **rivals}

    return check


def _save(facts: Facts, config: TrainConfig, run: Run, check: Any, log: Log, out: Path) -> Facts:
    """Write the checkpoint, with the metrics of ``check`` where that is given."""
    metrics = check(run.average) if check else facts.metrics
    if check:
        log.write(run.step, run.seconds, run.progress, **metrics)
    training = {
        **facts.training,
        **asdict(config),
        "steps": run.step,
        "seconds": round(run.seconds, 1),
        "cpu_seconds": round(run.cpu_seconds, 1),
    }
    facts = replace(facts, training=training, metrics=metrics)
    save_checkpoint(out, facts, run.average.state_dict(), run.state())
    return facts
