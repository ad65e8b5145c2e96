"""First-order CAB against NCAB, with class-activation pictures as in the paper's Fig. 4.

    python -m benchmarks.figure4 --data TRAIN --val VAL --cpu-minutes 3 --out figure4

Trains the ablations ``fig4-cab`` and ``fig4-ncab`` under one budget and the settings of the tables
(unless ``--cab`` and ``--ncab`` name checkpoints), measures both on VAL, and shows the features
that enter and leave the channel attention on one slice: figure4.png, and figure4.json with numbers.
What is constant over the slice is taken off first, for it is nearly all of these features' energy.
Super-resolution has no classes: a class-activation map (Grad-CAM, arXiv:1610.02391) here asks what
the network's *edge strength* rests on, the mean gradient magnitude of SR. That choice is ours.
"""

import argparse
import json
import shlex
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn

from benchmarks.paper_tables.rows import Protocol, Row, train_command
from poan_runtime.errors import PoanError
from poan_train import cli, evaluate, networks
from poan_train.checkpoint import Facts, load_network
from poan_train.data import cached_pair, default_cache
from poan_train.degrade import GRID, Array, Degradation
from poan_train.networks.poan import POAB
from poan_train.paper.ablations import ABLATED
from poan_train.subjects import CONTRASTS, find_sources

KINDS = ("cab", "ncab")
BORDER = 2
"""LR pixels left out of the maps: there the patch attention sees the zeros outside."""
MEASURES = ("psnr_volume_peak", "ssim_volume_peak")


@dataclass(frozen=True, kw_only=True)
class Activation:
    """What the channel attention of one network does on one LR image (h, w)."""

    before: Array
    """Features (C, h, w) that enter: x_p' of Eq. 7."""
    after: Array
    """Features (C, h, w) that leave, before the skip adds x_p' again: x_s."""
    gate: Array
    """Weight of each channel (C,)."""
    cam_before: Array
    """Class-activation map of ``before``, and of ``after``, without the border."""
    cam_after: Array
    sr: Array


def activation(network: nn.Module, lr: Array) -> Activation:
    """Run ``network`` on one LR image (h, w) and open its channel attention."""
    attention = channel_attention(network)
    seen: list[torch.Tensor] = []
    handle = attention.register_forward_hook(lambda _, given, out: seen.extend([*given, out]))
    try:
        sr = network(torch.from_numpy(np.ascontiguousarray(lr, np.float32))[None, None])
    finally:
        handle.remove()
    before, after = seen
    slopes = torch.autograd.grad(edge_strength(sr), (before, after))
    x, y = (features[0].detach().numpy() for features in (before, after))
    return Activation(
        before=x,
        after=y,
        gate=(x * y).sum((1, 2)) / np.maximum(np.square(x).sum((1, 2)), 1e-30),
        cam_before=class_activation(x, slopes[0][0].numpy()),
        cam_after=class_activation(y, slopes[1][0].numpy()),
        sr=sr[0, 0].detach().numpy(),
    )


def varying(features: Array) -> Array:
    """Features (C, h, w) without their border, less each channel's mean."""
    inner = features[:, BORDER:-BORDER, BORDER:-BORDER]
    return np.asarray(inner - inner.mean(axis=(1, 2), keepdims=True))


def activation_map(features: Array) -> Array:
    """Mean magnitude over channels of what varies: (C, h, w) -> (h, w) without the border."""
    return np.asarray(np.abs(varying(features)).mean(axis=0))


def class_activation(features: Array, slopes: Array) -> Array:
    """Grad-CAM of what varies: channels (C, h, w) weighted by their mean slope, where positive."""
    weights = slopes.mean(axis=(1, 2), keepdims=True)
    return np.asarray(np.maximum((weights * varying(features)).sum(axis=0), 0))


def channel_attention(network: nn.Module) -> nn.Module:
    """The channel attention of the network's POAB. Raises PoanError where there is none."""
    for module in network.modules():
        if isinstance(module, POAB) and module.channel is not None:
            return module.channel
    raise PoanError("the network has no channel attention; train fig4-cab and fig4-ncab")


def edge_strength(sr: torch.Tensor) -> torch.Tensor:
    """Mean gradient magnitude of images (N, 1, H, W)."""
    rows = sr[..., 1:, :-1] - sr[..., :-1, :-1]
    columns = sr[..., :-1, 1:] - sr[..., :-1, :-1]
    return (rows.square() + columns.square() + 1e-12).sqrt().mean()


def high_frequency_share(image: Array) -> float:
    """Share of the variance of an image (h, w) beyond half Nyquist, under a Hann window."""
    h, w = image.shape
    window = np.hanning(h)[:, None] * np.hanning(w)
    mean = float((image * window).sum() / window.sum())
    power = np.abs(np.fft.fft2((image - mean) * window)) ** 2
    radius = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w))
    return float(power[radius > 0.25].sum() / max(float(power.sum()), 1e-30))


def numbers(a: Activation) -> dict[str, float]:
    """What the pictures show, in numbers (no units; shares between 0 and 1)."""
    share = a.gate / a.gate.sum()
    fine = np.array([high_frequency_share(channel) for channel in varying(a.before)])
    inner = a.before[:, BORDER:-BORDER, BORDER:-BORDER]
    together = np.std(fine) * np.std(a.gate)
    correlation = np.mean((fine - fine.mean()) * (a.gate - a.gate.mean())) / max(together, 1e-30)
    maps = {"before": activation_map(a.before), "after": activation_map(a.after)}
    return {
        "channels": len(a.gate),
        "constant_share": float(np.square(inner.mean(axis=(1, 2))).sum() * inner[0].size)
        / max(float(np.square(inner).sum()), 1e-30),
        "gate_mean": float(a.gate.mean()),
        "gate_least": float(a.gate.min()),
        "gate_largest": float(a.gate.max()),
        "gate_spread": float(a.gate.std() / a.gate.mean()),
        "effective_channels": float(np.exp(-(share * np.log(np.maximum(share, 1e-30))).sum())),
        "gate_follows_high_frequency": float(correlation),
        "size_after_over_before": float(np.linalg.norm(a.after) / np.linalg.norm(a.before)),
        **{f"high_frequency_of_map_{k}": high_frequency_share(m) for k, m in maps.items()},
        "map_correlation": _correlation(maps["before"], maps["after"]),
        "high_frequency_of_cam_before": high_frequency_share(a.cam_before),
        "high_frequency_of_cam_after": high_frequency_share(a.cam_after),
        "cam_correlation": _correlation(a.cam_before, a.cam_after),
    }


def _correlation(a: Array, b: Array) -> float:
    """Pearson's; 0 where one of the two is constant."""
    x, y = a - a.mean(), b - b.mean()
    return float((x * y).sum() / max(float(np.linalg.norm(x) * np.linalg.norm(y)), 1e-30))


def draw(path: Path, up: Array, shown: Mapping[str, Activation], caption: str) -> None:
    """A row per network: bicubic, SR, the four maps, the sorted channel weights."""
    figure = Figure(figsize=(15.4, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 7)
    for row, kind in zip(axes, KINDS, strict=True):
        a = shown[kind]
        images = {"bicubic": up, f"SR, {kind.upper()}": a.sr}
        images |= {"activation before": activation_map(a.before)}
        images |= {f"activation after {kind.upper()}": activation_map(a.after)}
        images |= {"CAM before": a.cam_before, f"CAM after {kind.upper()}": a.cam_after}
        for place, (title, image) in zip(row, images.items(), strict=False):
            picture = title.startswith(("bicubic", "SR"))
            top = float(np.percentile(up, 99.8)) if picture else float(image.max())
            place.imshow(image, cmap="gray" if picture else "turbo", vmin=0, vmax=top or 1)
            place.set_title(title, fontsize=9)
            place.set_axis_off()
        row[-1].bar(np.arange(len(a.gate)), np.sort(a.gate)[::-1] / a.gate.mean(), color="0.4")
        row[-1].axhline(1, color="tab:red", linewidth=0.8)
        row[-1].set_title("channel weights / their mean", fontsize=9)
        row[-1].tick_params(labelsize=7)
    figure.supxlabel("\n".join(textwrap.wrap(caption, 225)), fontsize=8.5, x=0.01, ha="left")
    figure.savefig(path, dpi=110)


def describe(content: Mapping[str, Any]) -> str:
    """The caption: what is shown, after how much training, and what the numbers say."""
    parts = [
        f"Features entering and leaving the channel attention, {content['contrast']} "
        f"x{content['scale']}, {content['volume']}, slice {content['slice']}, its central "
        f"{content['crop']}x{content['crop']} LR pixels in one piece. Activation: mean magnitude "
        "over channels, each less its mean over the image. CAM: the same channels weighted by the "
        "mean gradient of SR's edge strength (there is no class in super-resolution; this stand-in "
        "is ours). Each map is scaled to its own maximum."
    ]
    for kind in KINDS:
        n, t, v = (content[kind][k] for k in ("numbers", "training", "validation"))
        parts.append(
            f"{kind.upper()} ({t['arch']}, {t['parameters']:,} parameters, {t['steps']:,} steps, "
            f"{t['cpu_minutes']:.1f} processor minutes, seed {t['seed']}): "
            f"{100 * n['constant_share']:.3f} % of the features' energy is constant over the image "
            "(not shown); weights "
            f"{n['gate_mean']:.3f} on average, spread {100 * n['gate_spread']:.1f} %; "
            f"{n['effective_channels']:.1f} of {n['channels']} channels count; maps before and "
            f"after correlate {n['map_correlation']:.4f}, their high-frequency share "
            f"{n['high_frequency_of_map_before']:.4f} and {n['high_frequency_of_map_after']:.4f}; "
            f"validation {v['psnr_volume_peak']:.2f} dB, {v['ssim_volume_peak']:.4f}."
        )
    parts.append(
        "The paper's networks are of full size and trained for 1000 epochs; these are not."
    )
    return " ".join(parts)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.figure4",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Options of poan-train after -- go to both trainings, e.g. -- --batch 8.",
    )
    p.add_argument("--data", type=Path, help="folder of training volumes, unless both are given:")
    p.add_argument("--cab", type=Path, metavar="CKPT", help="checkpoint with first-order CAB")
    p.add_argument("--ncab", type=Path, metavar="CKPT", help="checkpoint with NCAB")
    p.add_argument("--val", type=Path, required=True, help="folder of volumes of other subjects")
    p.add_argument("--out", type=Path, required=True, help="folder of figure and checkpoints")
    p.add_argument("--arch", choices=ABLATED, default="poan-lite")
    p.add_argument("--contrast", choices=CONTRASTS, default="T2")
    p.add_argument("--scale", type=int, choices=networks.SCALES, default=2)
    p.add_argument("--cpu-minutes", type=float, default=3.0, help="processor time of each training")
    p.add_argument("--steps", type=int, help="budget in steps instead")
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--tile", type=int, help="of the validation; default: the export's")
    p.add_argument("--every", type=int, default=4, help="validate every N-th slice")
    p.add_argument("--volume", help="file in VAL to show (default: the first of the contrast)")
    p.add_argument("--slice", type=int, help="of its slices that are not background; the middle")
    p.add_argument("--crop", type=int, default=64, help="LR pixels of the slice to show")
    p.add_argument("--train-only", choices=KINDS, help="train one of the two and stop")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    args = parser().parse_args(arguments[:cut])
    try:
        run(args, arguments[cut + 1 :])
    except PoanError as error:
        print(f"figure4: {error}", file=sys.stderr)
        return 2
    return 0


def run(args: argparse.Namespace, extra: Sequence[str]) -> None:
    """Train what is missing, open both networks, write figure4.png and figure4.json."""
    if not (args.cab and args.ncab):  # a mistyped slice shall not cost a training
        chosen_slice(args, args.contrast, args.scale, "bicubic")
    if args.train_only:
        trained(args.train_only, args, extra)
        return
    found = {kind: getattr(args, kind) or trained(kind, args, extra) for kind in KINDS}
    loaded = {kind: load_network(path) for kind, path in found.items()}
    facts = loaded["cab"][1]
    same = {kind: (f.arch, f.contrast, f.degradation) for kind, (_, f) in loaded.items()}
    if same["cab"] != same["ncab"]:
        raise PoanError(f"the two checkpoints are no pair: {same['cab']} and {same['ncab']}")
    method = facts.degradation["method"]
    content, lr = chosen_slice(args, facts.contrast, facts.scale, method)
    shown = {kind: activation(network, lr) for kind, (network, _) in loaded.items()}
    for kind, (network, own) in loaded.items():
        content[kind] = {
            "training": training_of(network, own),
            "validation": validation(found[kind], args),
            "numbers": numbers(shown[kind]),
        }
        if not getattr(args, kind):
            command = command_of(kind, args, extra)
            content[kind]["command"] = shlex.join(["poan-train", *command])
    content["caption"] = describe(content)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "figure4.json").write_text(json.dumps(content, indent=1) + "\n")
    up = evaluate.bicubic(lr[None], facts.scale, GRID[method])[0]
    draw(args.out / "figure4.png", up, shown, content["caption"])
    print(args.out / "figure4.png")


def trained(kind: str, args: argparse.Namespace, extra: Sequence[str]) -> Path:
    """The checkpoint of fig4-``kind``, trained now unless its budget is used up."""
    if args.data is None:
        raise PoanError("need --data to train, or --cab and --ncab")
    command = command_of(kind, args, extra)
    if cli.main(command):
        raise PoanError(f"this failed, see above: {shlex.join(['poan-train', *command])}")
    return Path(command[-1])


def command_of(kind: str, args: argparse.Namespace, extra: Sequence[str]) -> list[str]:
    """Arguments of poan-train: the tables' settings, the same for both."""
    budget = (
        ("--steps", f"{args.steps}") if args.steps else ("--cpu-minutes", f"{args.cpu_minutes:g}")
    )
    row = Row(
        table=4,
        label=kind,
        arch=args.arch,
        ablation=f"fig4-{kind}",
        contrast=args.contrast,
        scale=args.scale,
        seed=args.seed,
    )
    protocol = Protocol(
        train=args.data, val=args.val, out=args.out, budget=budget, extra=tuple(extra)
    )
    return train_command(row, protocol, args.lr)


def chosen_slice(
    args: argparse.Namespace, contrast: str, scale: int, method: Degradation
) -> tuple[dict[str, Any], Array]:
    """(what is shown, the central LR crop (h, w) of the slice)."""
    sources = find_sources(args.val, contrast)
    named = [s for s in sources if args.volume in (None, s.path.name)]
    if not named:
        names = ", ".join(s.path.name for s in sources)
        raise PoanError(f"--volume {args.volume}: {args.val} has {names}")
    pair = cached_pair(named[0], scale, method, None, default_cache())
    index = len(pair.lr) // 2 if args.slice is None else args.slice
    if not 0 <= index < len(pair.lr):
        raise PoanError(f"--slice {index}: {named[0].path.name} has {len(pair.lr)} slices")
    h, w = pair.lr.shape[1:]
    size = min(args.crop, h, w)
    top, left = (h - size) // 2, (w - size) // 2
    lr = np.asarray(pair.lr[index, top : top + size, left : left + size])
    content = {"contrast": contrast, "scale": scale, "volume": named[0].path.name}
    return {**content, "slice": index, "crop": size}, lr


def training_of(network: nn.Module, facts: Facts) -> dict[str, Any]:
    """What the checkpoint says of its training."""
    t = facts.training
    return {
        "arch": facts.arch,
        "channel": facts.network["channel"],
        "parameters": sum(p.numel() for p in network.parameters()),
        "steps": t.get("steps", 0),
        "cpu_minutes": t.get("cpu_seconds", 0.0) / 60,
        "lr": t.get("lr"),
        "seed": t.get("seed", 0),
    }


def validation(checkpoint: Path, args: argparse.Namespace) -> dict[str, float]:
    """Mean PSNR and SSIM over the volumes of ``--val``."""
    out = args.out / "validation.json"
    command = ["--ckpt", str(checkpoint), "--data", str(args.val), "--every", str(args.every)]
    command += ["--tile", str(args.tile)] if args.tile is not None else []
    if evaluate.main([*command, "--json", str(out)]):
        raise PoanError(f"this failed, see above: {shlex.join(['poan-eval', *command])}")
    mean = json.loads(out.read_text())["mean"]
    out.unlink()
    return {name: mean["sr"][name] for name in MEASURES}


if __name__ == "__main__":
    sys.exit(main())
