"""Four upright panels, LR, sinc, ours and HR, from the picture of one volume by poan-eval.

poan-eval --ckpt poan_train/checkpoints/mr_x2.pt --data FOLDER --lr-model snr30 --png wide.png
python -m benchmarks.scan_picture wide.png docs/scan.png
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

BAR = 16
"""Height in pixels of poan-eval's line of labels."""
LABELS = ("LR, SNR 30", "sinc", "poan", "HR")
PANELS = 6


def four(wide: Image.Image) -> Image.Image:
    """The first four of the six panels of ``wide`` (one row), turned by a quarter."""
    side = wide.width // PANELS
    if wide.height != side + BAR:
        raise SystemExit("scan_picture: the picture has more than one volume")
    sheet = Image.new("L", (side * len(LABELS), wide.height), 0)
    draw = ImageDraw.Draw(sheet)
    for k, label in enumerate(LABELS):
        panel = wide.crop((k * side, BAR, (k + 1) * side, BAR + side))
        sheet.paste(panel.transpose(Image.Transpose.ROTATE_90), (k * side, BAR))
        draw.text((k * side + 4, 2), label, fill=255)
    return sheet


def main(argv: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m benchmarks.scan_picture", description=__doc__)
    p.add_argument("wide", type=Path, help="what poan-eval --png wrote")
    p.add_argument("out", type=Path)
    args = p.parse_args(argv)
    with Image.open(args.wide) as wide:
        four(wide).save(args.out, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
