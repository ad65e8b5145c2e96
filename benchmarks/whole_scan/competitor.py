"""What a user would write without this project, as a program: NIfTI in, NIfTI out.

    python -m benchmarks.whole_scan.competitor ENGINE --tile T --lr IN --out OUT --times JSON ...

ENGINE is ``torch-eager`` or ``torch-compile`` (MONAI's sliding window on the checkpoint's network
with unfold attention, float32), ``onnxruntime`` or ``openvino-PRECISION`` (the plain ONNX file in
a hand-written loop). All read with nibabel, divide by the 99.9th percentile of the non-zero
voxels, and write int16 with nibabel.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.resident import note_loaded

Array = np.ndarray[Any, Any]
Network = Callable[[Array], Array]
"""Tiles (N, 1, t, t) to (N, 1, s t, s t)."""
TIMES: dict[str, float] = {}


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Seconds of the block, by name."""
    start = time.perf_counter()
    yield
    TIMES[name] = TIMES.get(name, 0.0) + time.perf_counter() - start


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m benchmarks.whole_scan.competitor")
    p.add_argument("engine")
    p.add_argument("--ckpt", type=Path)
    p.add_argument("--onnx", type=Path)
    p.add_argument("--lr", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--times", type=Path, required=True)
    p.add_argument("--tile", type=int, required=True)
    p.add_argument("--overlap", type=int, required=True, help="LR voxels that neighbours share")
    p.add_argument("--batch", type=int, required=True, help="tiles per call")
    p.add_argument("--scale", type=int, required=True)
    return p


def main() -> None:
    args = parser().parse_args()
    import nibabel

    from poan_runtime.intensity import intensity_unit

    with stage("read"):
        scan = nibabel.load(args.lr)
        lr = np.moveaxis(np.asarray(scan.dataobj, np.float32), 2, 0)  # (S, h, w)
        unit = np.float32(intensity_unit(lr))
    upscale = by_monai if args.engine.startswith("torch") else by_loop
    sr = upscale(args, lr / unit) * unit
    with stage("write"):
        voxels = np.clip(np.rint(np.moveaxis(sr, 0, 2)), -32768, 32767).astype(np.int16)
        affine = scan.affine @ np.diag([1 / args.scale, 1 / args.scale, 1, 1])
        nibabel.save(nibabel.Nifti1Image(voxels, affine), args.out)
    args.times.write_text(json.dumps(TIMES), "utf-8")


def by_monai(args: argparse.Namespace, lr: Array) -> Array:
    """SR (S, s h, s w) of LR (S, h, w) by SlidingWindowInferer, slices as its batch."""
    with stage("load"):
        import torch
        from monai.inferers import SlidingWindowInferer

        from benchmarks.plain import with_unfold
        from poan_train.checkpoint import load_network

        network: Any = with_unfold(load_network(args.ckpt)[0])
        if args.engine == "torch-compile":
            network = torch.compile(network)
        inferer = SlidingWindowInferer(
            roi_size=(args.tile, args.tile),
            sw_batch_size=args.batch,
            overlap=args.overlap / args.tile,
        )
    note_loaded()
    x = torch.from_numpy(np.ascontiguousarray(lr))[:, None]
    with torch.inference_mode():
        with stage("first_batch"):  # compiles, where it is compiled
            first = x[:1, :, : args.tile, : args.tile].expand(args.batch, -1, -1, -1)
            network(first.contiguous())
        with stage("inference"):
            return np.asarray(inferer(x, network)[:, 0])


def by_loop(args: argparse.Namespace, lr: Array) -> Array:
    """SR (S, s h, s w) of LR (S, h, w): tile by tile, overlaps averaged."""
    with stage("load"):
        network = onnx_network(args)
    note_loaded()
    s, tile, (slices, h, w) = args.scale, args.tile, lr.shape
    padded = np.pad(lr, ((0, 0), (0, max(0, tile - h)), (0, max(0, tile - w))), mode="reflect")
    places = [
        (top, left)
        for top in starts(padded.shape[1], tile, args.overlap)
        for left in starts(padded.shape[2], tile, args.overlap)
    ]
    total = np.zeros((slices, s * padded.shape[1], s * padded.shape[2]), np.float32)
    count = np.zeros(total.shape[1:], np.float32)
    for top, left in places:
        count[s * top : s * (top + tile), s * left : s * (left + tile)] += 1
    order = [(index, *place) for index in range(slices) for place in places]
    with stage("inference"):
        for first in range(0, len(order), args.batch):
            chosen = order[first : first + args.batch]
            tiles = np.stack([padded[z, y : y + tile, x : x + tile] for z, y, x in chosen])
            for (z, y, x), fine in zip(chosen, network(tiles[:, None])[:, 0], strict=True):
                total[z, s * y : s * (y + tile), s * x : s * (x + tile)] += fine
    return (total / count)[:, : s * h, : s * w]


def starts(extent: int, tile: int, overlap: int) -> list[int]:
    """Start of each tile; the last one ends at ``extent``. As MONAI lays them out."""
    return [*range(0, extent - tile, tile - overlap), extent - tile]


def onnx_network(args: argparse.Namespace) -> Network:
    """The plain ONNX file, loaded as each engine's own introduction does."""
    if args.engine == "onnxruntime":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(args.onnx))
        return lambda tiles: np.asarray(session.run(None, {"lr": tiles})[0])
    import openvino

    precision = args.engine.removeprefix("openvino-")
    settings = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(str(args.onnx), "CPU", settings)
    return lambda tiles: np.asarray(compiled([tiles])[0])


if __name__ == "__main__":
    main()
