"""What a plan moves: bytes and kernels of each form and tile, from the builder's own log.

    python -m benchmarks.bytes                            # the tables, into benchmarks/README.md
    python -m benchmarks.bytes --row default box 60       # one row
    python -m benchmarks.bytes --row default box 60 fixed # fewer islands in float32

A GPU's time on this network goes by the bytes that its kernels read and write. tensorrt-rtx builds
real plans without a GPU, and its log lists every kernel with the tensors that go in and come out.
"""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any, Literal

import onnx
import torch

from poan_export.precision.islands import default_islands, fixed_islands, in_half
from poan_export.rewrite.attention import Form
from poan_export.rewrite.network import rewrite, rules_for
from poan_export.rewrite.root import Scheme
from poan_export.trace.onnx_export import export_twin, without_stages
from poan_runtime.engines.tensorrt.build.plan import Order, build_plan, full_batches
from poan_runtime.tiles.layout import lay_out
from poan_train import networks
from poan_train.networks.config import DENSE

BATCH, SCALE = 8, 2
SLICE = 240
SIDES = (120, 128, 144, 160, 192, 208, 240, 256, 288, 320, 512)
"""Matrices that LR slices have."""
FIRST = networks.ARCHITECTURES["poan"].tile
"""The tile of an export that names none."""
TILES = (24, 30, 36, 42, 48, 54, 57, 60, 63, 66, 72, 78, 84, 90)
"""Multiples of the strides, which others would have to pad for."""
Wanted = tuple[str, Form, int, str]
ROWS: tuple[Wanted, ...] = (
    ("dense", "box", 60, "default"),
    ("dense", "box", 64, "default"),
    ("dense", "unfold", 60, "default"),
    ("default", "unfold", 60, "default"),
    ("default", "box", 60, "fixed"),
    *(("default", "box", tile, "default") for tile in TILES),
)
README = Path(__file__).parent / "README.md"
RESULT = Path(__file__).parent / "results/bytes.json"
START, END = "<!-- bytes: python -m benchmarks.bytes -->", "<!-- end of bytes -->"
ISLANDS = {"default": lambda network: default_islands(network, "fp16"), "fixed": fixed_islands}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One plan: ``bytes_moved`` of a batch, ``mb_per_slice`` of a slice."""

    attention: str
    form: str
    tile: int
    bytes_moved: int
    kernels: int
    activation_bytes: int
    islands: str = "default"

    def mb_per_slice(self, side: int = SLICE) -> float:
        """MB moved for one square slice."""
        return self.bytes_moved / BATCH * tiles_per_slice(self.tile, side) / 1e6


def measure(
    attention: Literal["dense", "default"] | str, form: Form, tile: int, kept: str = "default"
) -> Row:
    """Build the paper's network x2 in fp16 for SM86, untrained, and read its log."""
    torch.manual_seed(0)
    settings: dict[str, Any] = dict(DENSE) if attention == "dense" else {}
    network = networks.build("poan", networks.make_config("poan", SCALE, **settings)).eval()
    exported = rewrite(network, rules_for(Scheme(name="quintic", iterations=7), form))
    islands = ISLANDS[kept](exported)
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "model.fp16.onnx"
        onnx.save(without_stages(export_twin(in_half(exported, "fp16", islands), tile)), source)
        order = Order(
            onnx=source,
            plan=Path(scratch) / "engine.plan",
            flavour="tensorrt-rtx",
            precision="fp16",
            islands=islands,
            batch=full_batches(BATCH),
            sms=("86",),
        )
        report = build_plan(order).report
    return Row(
        attention=attention,
        form=form,
        tile=tile,
        bytes_moved=report["bytes_moved"],
        kernels=report["layers"],
        activation_bytes=report["activation_bytes"],
        islands=kept,
    )


def tiles_per_slice(tile: int, side: int = SLICE) -> int:
    """Tiles of a square slice, as the run loop lays them out for this network."""
    own = networks.ARCHITECTURES["poan"]
    found = lay_out(
        side,
        side,
        1,
        tile=tile,
        scale=SCALE,
        halo=own.halo,
        overlap=own.overlap,
        batch=BATCH,
        best_batch=BATCH,
        most_batch=BATCH,
    )
    return found.tiles_per_slice


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "| attention | form | islands | tile | GB a batch of 8 | kernels | activations, MB | "
        "tiles of a slice 240 x 240 | GB a slice |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.attention} | {row.form} | {row.islands} | {row.tile} | "
            f"{row.bytes_moved / 1e9:.2f} | {row.kernels} | {row.activation_bytes / 1e6:.0f} | "
            f"{tiles_per_slice(row.tile)} | {row.mb_per_slice() / 1e3:.2f} |"
        )
    return "\n".join(lines)


def by_size(rows: list[Row]) -> str:
    """GB that a slice of each size moves, by tile; the least of each size in bold."""
    searched = by_tile(rows)
    lines = [
        f"| slice | {' | '.join(f'tile {row.tile}' for row in searched)} |",
        f"|---|{'---|' * len(searched)}",
    ]
    for side in SIDES:
        figures = [row.mb_per_slice(side) / 1e3 for row in searched]
        cells = [f"**{f:.2f}**" if f == min(figures) else f"{f:.2f}" for f in figures]
        lines.append(f"| {side} x {side} | {' | '.join(cells)} |")
    return "\n".join(lines)


def second_tile(rows: list[Row]) -> str:
    """What a second plan beside the default tile's saves of the bytes of each size, in percent."""
    searched = by_tile(rows)
    first = next(row for row in searched if row.tile == FIRST)
    lines = [
        f"| second tile | {' | '.join(map(str, SIDES))} | mean |",
        f"|---|{'---|' * (len(SIDES) + 1)}",
    ]
    for row in searched:
        if row is first:
            continue
        saved = [100 * saved_by(row, first, side) for side in SIDES]
        cells = [f"{percent:.0f}" for percent in saved]
        lines.append(f"| {row.tile} | {' | '.join(cells)} | {sum(saved) / len(saved):.1f} |")
    return "\n".join(lines)


def saved_by(second: Row, first: Row, side: int) -> float:
    """Share of ``first``'s bytes for a square slice that the cheaper one of both plans saves."""
    return max(0.0, 1 - second.mb_per_slice(side) / first.mb_per_slice(side))


def by_tile(rows: list[Row]) -> list[Row]:
    """The rows that differ from the default export in the tile alone."""
    return [row for row in rows if kind(row) == ("default", "box", "default")]


def kind(row: Row) -> tuple[str, str, str]:
    """What a row is of, beside its tile."""
    return row.attention, row.form, row.islands


def write(rows: list[Row]) -> None:
    """The figures into results/bytes.json, the tables between their marks in the README."""
    RESULT.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")
    text = README.read_text("utf-8")
    head, rest = text.split(START)
    tables = f"{table(rows)}\n\n{by_size(rows)}\n\n{second_tile(rows)}"
    README.write_text(f"{head}{START}\n{tables}\n{END}{rest.split(END)[1]}", "utf-8")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    p.add_argument("--row", nargs="+", metavar="ATTENTION FORM TILE [ISLANDS]")
    args = p.parse_args()
    if args.row is not None:
        attention, form, tile, *kept = args.row
        print(table([measure(attention, form, int(tile), *kept)]))
        return
    rows = []
    for wanted in ROWS:
        rows.append(measure(*wanted))
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    write(rows)


if __name__ == "__main__":
    main()
