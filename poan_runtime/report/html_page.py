"""`--report out.html`: one page to look at, which needs no network and names no patient.

It holds the first volume in 8 bits, a middle slab of it where the whole would make the page larger
than `LARGEST_PAGE`. Names of files stay out, for they often are names of people.
"""

import base64
import gzip
import hashlib
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from poan_runtime.as_measured import slices_across
from poan_runtime.errors import PoanError
from poan_runtime.extras import poan_version
from poan_runtime.files import WholeFile
from poan_runtime.geometry import Affine, Geometry, spacing, spatial_shape
from poan_runtime.images.source import Source
from poan_runtime.network import Network
from poan_runtime.report.html_pictures import crop_png, histogram, spectrum, versions
from poan_runtime.report.html_template import TEMPLATE
from poan_runtime.report.preview import upright
from poan_runtime.super_resolve import Outcome, Pair

LARGEST_PAGE = 6_000_000
"""Bytes."""
MOST_VOXELS = 8_000_000
"""Of the output: no more are kept, whatever they pack to."""
SAMPLED = 9
FULL_COLOUR = 0.1
"""Share of the window at which the changed-map has its brightest colour."""
NIIVUE = Path(__file__).parent / "vendored/niivue-0.69.0.umd.js.gz"
NIIVUE_SHA256 = "43cc93c8caf46410d33cb79b0808f8ac28b2bf41b23cdb8c76503e938902d3c2"
Bytes = NDArray[np.uint8]


PAGES = (".html", ".htm")


def is_page(name: str | None) -> bool:
    """Whether a report of that name is a page to look at, not JSON."""
    return (name or "").endswith(PAGES)


class HtmlPage:
    """A `poan_runtime.super_resolve.Consumer` that keeps what the page shows; `write` writes it.

    ``source`` tells the window of grey levels before the run.
    """

    def __init__(self, source: Source, axis: str | int | None = None) -> None:
        self._window = window_of(source, axis)
        self._lr: list[Bytes] = []
        self._sr: list[Bytes] = []
        self._changed: list[Bytes] = []
        self._start = 0
        self._middle: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None

    def __call__(self, geometry: Geometry, pair: Pair) -> None:
        """Look at one slab of the first volume."""
        if pair.volume:
            return
        middle = geometry.slices // 2 - pair.start
        if 0 <= middle < len(pair.lr):
            self._middle = pair.lr[middle].copy(), pair.sr[middle].copy()
        first, last = kept(geometry)
        wanted = slice(max(0, first - pair.start), max(0, last - pair.start))
        self._start = first
        self._lr += [self._grey(plane) for plane in pair.lr[wanted]]
        self._sr += [self._grey(plane) for plane in pair.sr[wanted]]
        if pair.changed is not None:
            self._changed += [self._colour(plane) for plane in pair.changed[wanted]]

    def write(
        self,
        path: Path,
        network: Network,
        outcome: Outcome,
        source: Source,
        lines: Sequence[str],
        total_s: float,
    ) -> None:
        """Write the page, with as many slices as fit; ``lines`` are the warnings."""
        warned = warnings(lines, source)
        count = len(self._sr)
        while True:
            page = self._page(network, outcome, source, total_s, count)
            page = page.replace("@WARNINGS@", warned)
            if len(page) <= LARGEST_PAGE or count == 1:
                break
            room = LARGEST_PAGE - 1_400_000
            count = max(1, min(count - 1, int(count * room / (len(page) - 1_400_000))))
        with WholeFile(path) as file:
            file.write(page.encode())

    def _page(
        self, network: Network, outcome: Outcome, source: Source, total_s: float, count: int
    ) -> str:
        geometry = outcome.geometry
        first = (len(self._sr) - count) // 2
        shown = slice(first, first + count)
        at = self._start + first
        lr = volume(self._lr[shown], geometry.affine, geometry.axis, at)
        sr = volume(self._sr[shown], geometry.fine_affine, geometry.axis, at)
        whole = count == geometry.slices and geometry.volumes == 1
        parts = {
            "TITLE": html.escape(f"{network.model.manifest.name}, x{geometry.scale}"),
            "SUMMARY": html.escape(summary(outcome)),
            "PLANE": str(plane_of(geometry)),
            "VIEWS": _views(count, geometry, whole),
            "CROPS": self._crops(geometry, network.model.manifest.grid),
            "HISTOGRAM": histogram({"input": np.stack(self._lr), "output": np.stack(self._sr)}),
            "SPECTRUM": self._spectrum(outcome, network.model.manifest.grid),
            "FACTS": rows(facts(network, outcome, source, total_s)),
            "NIIVUE": base64.b64encode(niivue()).decode(),
            "LR": lr,
            "SR": sr,
            "OVERLAY": OVERLAY if self._changed else "",
            "CHANGED": self._changed_script(shown, geometry, at),
        }
        page = TEMPLATE
        for name, content in parts.items():
            page = page.replace(f"@{name}@", content)
        return page

    def _changed_script(self, shown: slice, geometry: Geometry, at: int) -> str:
        if not self._changed:
            return ""
        packed = volume(self._changed[shown], geometry.affine, geometry.axis, at)
        return f'<script type="application/octet-stream" id="changed">{packed}</script>'

    def _pictures(self, grid: str) -> dict[str, NDArray[np.float32]]:
        assert self._middle is not None, "a run shows every slice"
        return versions(*self._middle, grid)

    def _crops(self, geometry: Geometry, grid: str) -> str:
        figures = []
        for name, picture in self._pictures(grid).items():
            turned = upright(picture, geometry.affine, geometry.axis)
            image = crop_png(turned, self._window)
            figures.append(
                f'<figure><img alt="{name}" src="{image}"><figcaption>{name}</figcaption></figure>'
            )
        return "".join(figures)

    def _spectrum(self, outcome: Outcome, grid: str) -> str:
        """Marks: the input's Nyquist, and where what was measured ends, if that was found."""
        scale, found = outcome.geometry.scale, outcome.measured
        measured = outcome.native_used or (found is not None and not found.native.is_zero_filled)
        marks = [(1 / scale, "native band: the input's Nyquist" if measured else "input's Nyquist")]
        if found is not None and found.native.is_zero_filled and not outcome.native_used:
            for cutoff, along in zip(found.native.cutoffs, ("rows", "columns"), strict=True):
                if cutoff is not None:
                    marks.append((cutoff / scale, f"native, {along}"))
        return spectrum(self._pictures(grid), marks)

    def _grey(self, plane: NDArray[np.float32]) -> Bytes:
        low, high = self._window
        share = np.nan_to_num((plane - low) / (high - low), posinf=1.0, neginf=0.0)
        return in_8_bits(share)

    def _colour(self, changed: NDArray[np.float32]) -> Bytes:
        low, high = self._window
        share = np.abs(changed) / (FULL_COLOUR * (high - low))
        return in_8_bits(share)


OVERLAY = (
    "<p><label>Where the network changed what was measured (brightest at "
    f"{FULL_COLOUR:.0%} of the window): "
    '<input type="range" id="opacity" min="0" max="1" step="0.05" value="0"></label></p>'
)


def window_of(source: Source, axis: str | int | None) -> tuple[float, float]:
    """Grey levels: 1st to 99.5th percentile of some slices of the first volume."""
    across = slices_across(source, axis)
    count = spatial_shape(source.shape)[across]
    picks = sorted({int(k) for k in np.linspace(0, count - 1, SAMPLED)})
    values = np.concatenate([source.read_slices(across, k, k + 1).ravel() for k in picks])
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(finite, [1, 99.5]))
    return low, high if high > low else low + 1.0


def in_8_bits(share: NDArray[Any]) -> Bytes:
    """0 to 1 as 0 to 255."""
    return np.asarray((np.clip(share, 0, 1) * 255).round(), np.uint8)


def kept(geometry: Geometry) -> tuple[int, int]:
    """First slice that is kept, and one past the last: all, or a middle slab of `MOST_VOXELS`."""
    rows_, columns = geometry.plane
    plane = rows_ * columns * geometry.scale**2
    count = max(1, min(geometry.slices, MOST_VOXELS // plane))
    first = (geometry.slices - count) // 2
    return first, first + count


def plane_of(geometry: Geometry) -> int:
    """niivue's number of the view in which slices lie: axial 0, coronal 1, sagittal 2."""
    return 2 - int(np.abs(np.asarray(geometry.affine)[:3, geometry.axis]).argmax())


def volume(planes: Sequence[Bytes], affine: Affine, axis: int, start: int) -> str:
    """Slices from ``start`` on as a packed NIfTI file in base64."""
    data = np.moveaxis(np.stack(planes), 0, axis)
    moved = np.array(affine)
    moved[:3, 3] += start * moved[:3, axis]
    image = nib.Nifti1Image(data, moved)  # type: ignore[no-untyped-call]
    content: bytes = image.to_bytes()
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


def niivue() -> bytes:
    """The viewer, packed, if it is the one that was vendored."""
    content = NIIVUE.read_bytes()
    if hashlib.sha256(content).hexdigest() != NIIVUE_SHA256:
        raise PoanError(f"{NIIVUE}: is not the file that came with poan")
    return content


def summary(outcome: Outcome) -> str:
    """One or two sentences."""
    coarse, fine = outcome.geometry.shape, outcome.geometry.fine_shape
    said = f"{'x'.join(map(str, coarse))} voxels in, {'x'.join(map(str, fine))} out."
    faithful = outcome.faithfulness
    return f"{said} {faithful[0].upper()}{faithful[1:]}." if faithful else said


def warnings(lines: Sequence[str], source: Source) -> str:
    """Each in a box; the scan's path is left out of them."""
    if source.path is not None:
        lines = [_without(line, source.path) for line in lines]
    return "".join(f'<p class="warn">{html.escape(line)}</p>' for line in lines)


def _without(line: str, path: Path) -> str:
    for name in (f"{path}/", str(path), path.name):
        line = line.replace(name, "")
    return line.removeprefix(": ")


def _views(count: int, geometry: Geometry, whole: bool) -> str:
    if whole:
        return "The whole volume in 8 bits."
    first = " of the first volume" if geometry.volumes > 1 else ""
    return f"The middle {count} of {geometry.slices} slices{first}, in 8 bits."


def facts(
    network: Network, outcome: Outcome, source: Source, total_s: float
) -> list[tuple[str, str]]:
    """What the table says; what is not known has no line."""
    model, opened, timings = network.model, network.opened, outcome.timings
    manifest = model.manifest
    found = [
        ("model", f"{manifest.name}, {manifest.arch}, {model.file.name}"),
        ("SHA-256 of the model", model.file.sha256),
        ("engine", f"{opened.name} {opened.version} on {opened.device}: {opened.reason}"),
        ("precision", opened.precision or model.file.precision),
        ("parity with PyTorch", (model.file.parity or manifest.parity).verdict),
        ("poan", poan_version()),
    ]
    found += [("SHA-256 of the input", digest) for digest in source.sha256().values()]
    found += _measured(outcome)
    found += [
        ("voxels in, mm", _mm(outcome.geometry.affine)),
        ("voxels out, mm", _mm(outcome.geometry.fine_affine)),
        ("tiles", timings.tiles_in_words),
        ("seconds, total", f"{total_s:.2f}"),
    ]
    seconds = {"load model": network.load_s, **dict(sorted(timings.seconds.items()))}
    return found + [(f"seconds, {name}", f"{value:.2f}") for name, value in seconds.items()]


def _measured(outcome: Outcome) -> list[tuple[str, str]]:
    found, change = outcome.measured, outcome.change
    if found is None or change is None:
        return []
    noise = f"{found.noise.sigma:.4g}, from the {found.noise.source}" if found.noise.sigma else ""
    return [
        ("what the scanner measured", outcome.from_which_matrix or str(found.native)),
        *([("noise (standard deviation)", noise)] if noise else []),
        ("changed of what was measured", f"{change.relative:.2%}, {change.rms:.4g} rms"),
        ("measured band put back", f"{outcome.measured_kept:.0%}"),
    ]


def _mm(affine: Affine) -> str:
    return " x ".join(f"{length:.4g}" for length in spacing(affine))


def rows(lines: Sequence[tuple[str, str]]) -> str:
    """Lines of a table; digests in a font of their own."""
    made = []
    for name, value in lines:
        shown = html.escape(value)
        shown = f"<code>{shown}</code>" if name.startswith("SHA") else shown
        made.append(f"<tr><th>{html.escape(name)}</th><td>{shown}</td></tr>")
    return "".join(made)
