"""The two kernels that make POAN hard to run: the square root and the patch attention.

    python -m benchmarks.kernels

``roots`` sets eigh in float32 and float64 against Newton-Schulz and the quintic iteration, in
time and in the error of z (the mean over the root's rows) to float64. ``attention`` sets the
published unfold form against the box form, whole and streamed in row blocks, in PyTorch, and the
exported forms in ONNX Runtime and OpenVINO. Everything is float32 unless it says so.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch

from benchmarks import record
from benchmarks.engines import load, seconds_per_tile
from benchmarks.plain import onnx_of
from poan_export.rewrite.attention import FORMS, Form, LevelShare
from poan_export.rewrite.root import NewtonSchulz, Quintic
from poan_train.networks import attention as forms
from poan_train.networks.attention import PyramidAttention, shrink
from poan_train.networks.config import DENSE, POANConfig

EPS = 1e-3
"""Regularisation of the covariance, as in the network."""
LEVEL = 0.8
IN_ENGINES = ("onnxruntime-fp32", "openvino-f32", "openvino-bf16")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--channels", type=numbers, default=[32, 64, 128], help="of the covariance")
    p.add_argument("--batches", type=numbers, default=[1, 8])
    p.add_argument("--tiles", type=numbers, default=[24, 32, 48, 64])
    p.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--seconds", type=float, default=0.5, help="least per kernel")
    p.add_argument("--out", type=Path, default=record.RESULTS / "kernels" / "kernels.json")
    return p


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    document = {
        "machine": record.machine(),
        "roots": [row for c in args.channels for row in roots(c, args.batches, args.seconds)],
        "attention": [
            row for tile in args.tiles for row in attention(tile, args.seconds, args.cores)
        ],
    }
    record.write(args.out, document)
    write_plot(args.out.with_suffix(".png"), document)
    print(text(document))
    return 0


def timed(run: Callable[[], Any], least_s: float) -> float:
    """Median seconds of repeated runs over ``least_s``, after one that does not count."""
    run()
    samples: list[float] = []
    while not samples or sum(samples) < least_s:
        start = time.perf_counter()
        run()
        samples.append(time.perf_counter() - start)
    return record.median(samples)


def covariances(channels: int, batch: int) -> torch.Tensor:
    """Covariances (B, C, C) of features with a spectrum that falls by 1e6, regularised."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(channels, channels, generator=generator)
    fall = torch.logspace(0, -3, channels)
    x = torch.randn(batch, 4096, channels, generator=generator) * fall @ mix
    x = x - x.mean(dim=1, keepdim=True)
    sigma = x.transpose(1, 2) @ x / x.shape[1]
    trace = sigma.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    return sigma + EPS * trace / channels * torch.eye(channels)


def root_by_eigh(sigma: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(sigma)
    return (vectors * values.clamp_min(0).sqrt()[:, None]) @ vectors.mT


def roots(channels: int, batches: Sequence[int], least_s: float) -> list[dict[str, Any]]:
    """Milliseconds per matrix, and the largest relative error of z."""
    kernels: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "eigh float64": lambda sigma: root_by_eigh(sigma.double()),
        "eigh": root_by_eigh,
        "Newton-Schulz 5": NewtonSchulz(5),
        "Newton-Schulz 15": NewtonSchulz(15),
        "quintic 7": Quintic(7),
    }
    rows = []
    for batch in batches:
        sigma = covariances(channels, batch)
        exact = root_by_eigh(sigma.double()).mean(dim=1)
        for name, kernel in kernels.items():
            with torch.no_grad():
                error = (kernel(sigma).double().mean(dim=1) - exact).norm(dim=1) / exact.norm(dim=1)
                taken = timed(lambda kernel=kernel, sigma=sigma: kernel(sigma), least_s)
            row = {"kernel": name, "channels": channels, "batch": batch}
            rows.append({**row, "ms": 1e3 * taken / batch, "error_of_z": float(error.max())})
    return rows


def attention(tile: int, least_s: float, cores: int) -> list[dict[str, Any]]:
    """Milliseconds of one level of the dense patch attention on one tile, 32 and 64 channels."""
    torch.manual_seed(0)
    config = POANConfig(scale=2, **DENSE)
    trained = PyramidAttention(config).eval()
    x = torch.rand(1, config.channels, tile, tile)
    with torch.no_grad():
        small = shrink(x, LEVEL)
        query, key, value = trained.query(x), trained.key(small), trained.value(small)
    pairs = tile**2 * key.shape[2] * key.shape[3]
    e, v = config.embedding, config.channels
    per_pixel = (e + v) * pairs / 1e9
    gmac = {"unfold": 9 * per_pixel, "box": per_pixel, "flat": per_pixel}
    rows = []
    expected = forms.patch_attention_unfold(query, key, value, config.softmax_scale)
    for name, kernel in torch_forms(tile).items():
        with torch.no_grad():
            found = kernel(query, key, value, config.softmax_scale)
            taken = timed(lambda kernel=kernel: kernel(query, key, value, 10.0), least_s)
        error = float((found - expected).abs().max() / expected.abs().max())
        rows.append(row_of(f"torch {name}", tile, taken, gmac[name.split()[0]], error))
    feed = {"x": x.numpy(), "query": query.numpy()}
    for form in FORMS:
        graph = level_graph(trained, form, x, query)
        for engine in IN_ENGINES:
            taken = seconds_per_tile(load(engine, graph, cores), feed, least_s)
            rows.append(row_of(f"{engine} {form}", tile, taken, gmac[form], None))
    return rows


def row_of(name: str, tile: int, taken: float, gmac: float, error: float | None) -> dict[str, Any]:
    row = {"kernel": name, "tile": tile, "ms": 1e3 * taken, "gmac": gmac}
    return {**row, "gflops": 2 * gmac / taken, "error": error}


def torch_forms(tile: int) -> dict[str, Callable[..., torch.Tensor]]:
    """The published form, and the box form with and without row blocks."""

    def box(block_elements: int) -> Callable[..., torch.Tensor]:
        def run(*arguments: Any) -> torch.Tensor:
            before = forms.BLOCK_ELEMENTS
            forms.BLOCK_ELEMENTS = block_elements
            try:
                return forms.patch_attention_box(*arguments)
            finally:
                forms.BLOCK_ELEMENTS = before

        return run

    return {
        "unfold": forms.patch_attention_unfold,
        "box whole": box(tile**4),
        "box in blocks of 8 MiB": box(1 << 21),
        "box in blocks of 32 MiB": box(1 << 23),
    }


def level_graph(
    trained: PyramidAttention, form: Form, x: torch.Tensor, query: torch.Tensor
) -> onnx.ModelProto:
    """One level as it is exported: features and queries in, its share out."""
    share = LevelShare(trained, trained.levels.index(LEVEL), torch.eye(x.shape[1]), form).eval()
    return onnx_of(share, (x, query), ["x", "query"])


def text(document: dict[str, Any]) -> str:
    """Both tables."""
    lines = [["root", "channels", "batch", "ms each", "error of z"]]
    for row in document["roots"]:
        cells = [str(row["channels"]), str(row["batch"]), f"{row['ms']:.3f}"]
        lines.append([row["kernel"], *cells, f"{row['error_of_z']:.1e}"])
    more = [["attention", "tile", "ms", "GMAC", "GFLOP/s", "to unfold"]]
    for row in document["attention"]:
        error = "" if row["error"] is None else f"{row['error']:.1e}"
        cells = [str(row["tile"]), f"{row['ms']:.2f}", f"{row['gmac']:.2f}"]
        more.append([row["kernel"], *cells, f"{row['gflops']:.0f}", error])
    return f"{record.table(lines)}\n\n{record.table(more)}"


def write_plot(path: Path, document: dict[str, Any]) -> None:
    """Milliseconds of the roots by channels, and of the attention by tile."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5))
    batch = max(row["batch"] for row in document["roots"])
    for axis, rows, across in (
        (left, [r for r in document["roots"] if r["batch"] == batch], "channels"),
        (right, document["attention"], "tile"),
    ):
        for name in dict.fromkeys(row["kernel"] for row in rows):
            own = [row for row in rows if row["kernel"] == name]
            axis.loglog([r[across] for r in own], [r["ms"] for r in own], "o-", label=name)
        axis.set(xlabel=across, ylabel="ms")
        axis.legend(fontsize=7)
    left.set_title(f"square root, per matrix in batches of {batch}", fontsize=9)
    right.set_title("one level of the patch attention, per tile", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
