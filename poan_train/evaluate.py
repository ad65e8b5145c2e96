"""poan-eval: PSNR and SSIM of a checkpoint against bicubic and sinc, per volume, with a picture."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from poan_runtime.commands.arguments import Parser
from poan_runtime.commands.guard import guarded
from poan_runtime.commands.say import Voice, printable, write_line
from poan_runtime.engines.backend import Backend
from poan_runtime.errors import PoanError
from poan_runtime.files import WholeFile
from poan_runtime.tiles.ensemble import SelfEnsemble
from poan_runtime.tiles.layout import Layout, lay_out
from poan_runtime.tiles.run import SliceRunner, Timings
from poan_train import networks
from poan_train.acquire import KINDS
from poan_train.checkpoint import Facts, load_network
from poan_train.convention import (
    OURS,
    PSNRS,
    SSIMS,
    add_measures,
    add_preparation,
    preparation_of,
)
from poan_train.data import Pair, cached_pair, default_cache
from poan_train.degrade import GRID, Array, Degradation, sinc
from poan_train.kinds import case_of, gains_kept, kinds_table, score, summaries
from poan_train.metrics import psnr, psnr_whole, ssim
from poan_train.networks.poan import POAB
from poan_train.picture import check_picture, write_picture
from poan_train.resample import Grid, cubic_matrix
from poan_train.subjects import CONTRAST_WORDS, CONTRASTS, EVERY, contrast_word, find_sources

MEASURES = (*PSNRS.values(), *SSIMS.values())


@dataclass(frozen=True, kw_only=True)
class TorchBackend(Backend):
    """The runtime's Backend over a network in eval mode."""

    network: nn.Module
    device: str

    @torch.inference_mode()
    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        x = torch.tensor(batch, device=self.device)
        out: NDArray[np.float32] = self.network(x).float().cpu().numpy()
        return out


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How slices are cut, in LR voxels: the exporter's own for the architecture, as poan-run."""

    tile: int
    """0 runs whole slices."""
    halo: int
    overlap: int

    @classmethod
    def of(cls, arch: str, tile: int | None = None) -> "Tiling":
        """The architecture's, with another ``tile`` where one is given.

        Raises PoanError where the tile cannot hold halos and overlap.
        """
        own = networks.ARCHITECTURES[arch]
        chosen = own.tile if tile is None else tile
        least = 2 * own.halo + own.overlap + 1
        if chosen != 0 and chosen < least:
            raise PoanError(f"--tile {chosen}: {arch} needs 0 (whole slices) or at least {least}")
        return cls(tile=chosen, halo=own.halo, overlap=own.overlap)


def super_resolve(
    network: nn.Module,
    lr: Array,
    scale: int,
    grid: Grid,
    tiling: Tiling,
    *,
    self_ensemble: bool = False,
) -> Array:
    """SR (S, s h, s w) of slices (S, h, w) in the intensity unit, tiled as poan-run."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    whole = tiling.tile == 0
    backend: Any = TorchBackend(network=network.to(device), device=device)
    if self_ensemble and (not whole or lr.shape[1] == lr.shape[2]):
        backend = SelfEnsemble(backend, scale, grid)
    if whole:
        return np.concatenate([backend.run(part[None, None])[0] for part in lr])
    layout = layout_of(lr.shape, scale, tiling)
    runner = SliceRunner(backend=backend, layout=layout, skip=True, timings=Timings())
    return runner.run(np.ascontiguousarray(lr), 1.0)


def layout_of(shape: tuple[int, ...], scale: int, tiling: Tiling) -> Layout:
    """How poan-run cuts slices of ``shape`` (S, h, w)."""
    return lay_out(
        shape[1],
        shape[2],
        shape[0],
        tile=tiling.tile,
        scale=scale,
        halo=tiling.halo,
        overlap=tiling.overlap,
        batch=8,
        best_batch=8,
        most_batch=8,
    )


def bicubic(lr: Array, scale: int, grid: Grid) -> Array:
    """Cubic interpolation (a = -0.5) of slices (S, h, w) to (S, s h, s w) on the given grid."""
    h, w = lr.shape[1:]
    rows = cubic_matrix(h, scale * h, grid=grid).astype(np.float32)
    columns = cubic_matrix(w, scale * w, grid=grid).astype(np.float32)
    return np.asarray(rows @ lr @ columns.T)


def measure(hr: Array, estimate: Array) -> dict[str, float]:
    """PSNR (dB) and SSIM under every convention, see :mod:`poan_train.metrics`."""
    return {
        "psnr_whole_volume": psnr_whole(hr, estimate),
        "psnr_volume_peak": psnr(hr, estimate, "volume"),
        "psnr_slice_peak": psnr(hr, estimate, "slice"),
        "ssim_volume_peak": ssim(hr, estimate, "volume"),
        "ssim_slice_peak": ssim(hr, estimate, "slice"),
    }


def evaluate_pair(
    network: nn.Module,
    pair: Pair,
    scale: int,
    grid: Grid,
    tiling: Tiling,
    every: int,
    ensemble: bool,
) -> tuple[dict[str, Any], list[Array]]:
    """(the volume's row, its middle slice as [LR, bicubic, SR, HR])."""
    lr, hr = np.asarray(pair.lr[::every]), np.asarray(pair.hr[::every])
    sr = super_resolve(network, lr, scale, grid, tiling, self_ensemble=ensemble)
    up = bicubic(lr, scale, grid)
    row = {"volume": pair.source.path.name, "contrast": pair.source.contrast, "slices": len(lr)}
    row |= {"zero_fill_cutoff": pair.cutoff, "bicubic": measure(hr, up), "sr": measure(hr, sr)}
    middle = len(lr) // 2
    return row, [lr[middle], up[middle], sr[middle], hr[middle]]


def evaluate_kind(
    network: nn.Module,
    pair: Pair,
    scale: int,
    kind: str,
    tiling: Tiling,
    every: int,
    ensemble: bool,
) -> tuple[dict[str, Any], list[Array]]:
    """(the volume's row in one kind of LR, its middle slice as [LR, sinc, SR, HR])."""
    case = case_of(pair, scale, kind, every)
    estimates = {
        "bicubic": bicubic(case.lr, scale, "centre"),
        "sinc": sinc(case.lr, scale),
        "sr": super_resolve(network, case.lr, scale, "centre", tiling, self_ensemble=ensemble),
    }
    row: dict[str, Any] = {"volume": pair.source.path.name, "contrast": pair.source.contrast}
    row |= {"zero_fill_cutoff": pair.cutoff, **score(case, estimates)}
    row["kept_gain"] = gains_kept(case, estimates, scale)
    images = (case.lr, estimates["sinc"], estimates["sr"], case.hr)
    return row, [image[len(case.lr) // 2] for image in images]


def mean_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean over volumes of every measure."""
    return {
        "volume": "mean",
        **{
            w: {m: float(np.mean([r[w][m] for r in rows])) for m in MEASURES}
            for w in ("bicubic", "sr")
        },
    }


def table(
    rows: Sequence[dict[str, Any]],
    psnr_word: str = "volume-peak",
    ssim_word: str = "volume-peak",
) -> str:
    """Plain-text table: PSNR (a word of PSNRS) and SSIM (of SSIMS), and PSNR's gain."""
    p, q = PSNRS[psnr_word], SSIMS[ssim_word]
    lines = [f"PSNR {psnr_word} in dB / SSIM {ssim_word}; gain over bicubic"]
    lines += [f"{'volume':44} {'bicubic':>15} {'SR':>15} {'gain dB':>8}"]
    for row in rows:
        b, s = row["bicubic"], row["sr"]
        lines.append(
            f"{printable(row['volume'])[:44]:44} {b[p]:8.2f}/{b[q]:.4f} {s[p]:8.2f}/{s[q]:.4f} "
            f"{s[p] - b[p]:+8.2f}"
        )
    return "\n".join(lines)


def bypass_attention(network: nn.Module, path: Path) -> None:
    """Have the POAB of ``network`` return its input. Raises PoanError where there is none."""
    blocks = [module for module in network.modules() if isinstance(module, POAB)]
    if not blocks:
        raise PoanError(f"{path}: --without-attention: the network has no POAB")
    for block in blocks:
        block.bypass = True


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="poan-eval", description=__doc__)
    p.add_argument("--ckpt", type=Path, required=True, help="checkpoint of poan-train, a .pt")
    p.add_argument("--data", type=Path, required=True, help="folder of HR NIfTI volumes")
    p.add_argument(
        "--contrast",
        type=contrast_word,
        choices=(*CONTRASTS, *EVERY),
        help=f"default: the checkpoint's; {CONTRAST_WORDS}",
    )
    p.add_argument(
        "--lr-model",
        nargs="+",
        choices=(*KINDS, "all"),
        metavar="KIND",
        help=f"kinds of LR, measured within the head against bicubic and sinc: {', '.join(KINDS)}, "
        "all; default: the LR that the checkpoint was trained on, whole slices against bicubic; "
        "all for one trained on a scanner's",
    )
    p.add_argument("--table", type=Path, help="TSV with file, contrast, subject")
    p.add_argument("--axis", help="slice axis: 0, 1, 2, sagittal, coronal or axial")
    p.add_argument("--tile", type=int, help="LR tile, 0 for whole slices; default: the export's")
    p.add_argument("--every", type=int, default=1, help="evaluate every N-th slice")
    p.add_argument("--self-ensemble", action="store_true", help="POAN+: mean of eight orientations")
    p.add_argument(
        "--without-attention", action="store_true", help="bypass POAB: what is it worth?"
    )
    c = p.add_argument_group("the papers' conventions, for the LR of the training alone")
    add_preparation(c)
    add_measures(c)
    p.add_argument("--cache", type=Path, help="folder of decoded volumes")
    p.add_argument("--json", type=Path, help="the figures; an earlier file is replaced")
    p.add_argument("--png", type=Path, help="a picture, NAME.png; an earlier file is replaced")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    p = parser()
    args = p.parse_args(argv)

    def work() -> int:
        run(args)
        return 0

    return guarded(p.prog, work)


def run(args: argparse.Namespace) -> None:
    """Evaluate every volume, print the table, write what was asked for."""
    if args.png:
        check_picture(args.png)
    network, facts = load_network(args.ckpt)
    if args.without_attention:
        bypass_attention(network, args.ckpt)
    if args.every < 1:
        raise PoanError(f"need --every >= 1, got {args.every}")
    tiling = Tiling.of(facts.arch, args.tile)
    kinds = kinds_of(args.lr_model, facts)
    preparation = preparation_of(args)
    if kinds and preparation != OURS:
        raise PoanError(
            "--zero-filling, --slices and --round-lr are for the papers' LR, not for --lr-model"
        )
    if kinds:
        found, panels = run_kinds(args, network, facts, tiling, kinds)
        means = summaries(found)
        print(kinds_table([*found, *means]))
        results = {"kinds": kinds, "volumes": found, "means": means}
    else:
        found, panels = run_whole(args, network, facts, tiling)
        mean = mean_row(found)
        print(table([*found, mean], args.psnr, args.ssim))
        results = {"volumes": found, "mean": mean}
    if args.json:
        content = {"checkpoint": args.ckpt.name, "arch": facts.arch, **asdict(tiling)}
        content |= {"self_ensemble": args.self_ensemble}
        content |= {"without_attention": args.without_attention, "every": args.every}
        content |= {"preparation": asdict(preparation), **results}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        with WholeFile(args.json) as file:
            file.write(json.dumps(content, indent=1).encode() + b"\n")
    if args.png:
        write_picture(args.png, panels, "sinc" if kinds else "bicubic")


def kinds_of(asked: Sequence[str] | None, facts: Facts) -> list[str]:
    """The kinds of LR to measure on; none for the papers' way, on the checkpoint's own LR."""
    if asked is None and facts.degradation["method"] in ("bicubic", "kspace"):
        return []
    if facts.degradation["method"] == "kspace":
        raise PoanError("--lr-model: the kinds lie on the centre grid, this checkpoint does not")
    return list(KINDS) if asked is None or "all" in asked else list(dict.fromkeys(asked))


Panels: TypeAlias = list[tuple[str, list[Array]]]


def run_kinds(
    args: argparse.Namespace, network: nn.Module, facts: Facts, tiling: Tiling, kinds: list[str]
) -> tuple[list[dict[str, Any]], Panels]:
    """Rows and panels of every volume in every kind, sorted by kind."""
    rows, panels = [], []
    for pair in pairs_of(args, facts, "truncated"):
        for kind in kinds:
            row, panel = evaluate_kind(
                network, pair, facts.scale, kind, tiling, args.every, args.self_ensemble
            )
            rows.append(row)
            panels.append((f"{kind}: {pair.source.path.name}", panel))
    return sorted(rows, key=lambda row: kinds.index(row["kind"])), panels


def run_whole(
    args: argparse.Namespace, network: nn.Module, facts: Facts, tiling: Tiling
) -> tuple[list[dict[str, Any]], Panels]:
    """Rows and panels of every volume on the LR that the network was trained on."""
    rows, panels = [], []
    method = facts.degradation["method"]
    for pair in pairs_of(args, facts, method):
        row, panel = evaluate_pair(
            network, pair, facts.scale, GRID[method], tiling, args.every, args.self_ensemble
        )
        rows.append(row)
        panels.append((pair.source.path.name, panel))
    return rows, panels


def pairs_of(args: argparse.Namespace, facts: Facts, method: Degradation) -> Iterator[Pair]:
    """The volumes to measure on. Raises PoanError behind the last if none shows anything."""
    cache, some = args.cache or default_cache(), False
    warn = Voice("poan-eval").warn
    sources = find_sources(args.data, args.contrast or facts.contrast, args.table, warn)
    for number, source in enumerate(sources, 1):
        write_line(f"volume {number} of {len(sources)}: {source.path.name}", sys.stderr)
        pair = cached_pair(source, facts.scale, method, args.axis, cache, preparation_of(args))
        if len(pair.hr):
            some = True
            yield pair
        else:
            write_line(f"{source.path.name}: nothing but background, left out", sys.stderr)
    if not some:
        raise PoanError(f"{args.data}: no volume with anything but background")


if __name__ == "__main__":
    raise SystemExit(main())
