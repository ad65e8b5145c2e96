"""LR as a scanner makes it: fewer lines, filters, noise, the scanner's own interpolation.

Everything here starts from ``band``: whole LR slices (..., h, w), noise-free and signed, whose
spectrum is the centre of HR's (:func:`poan_train.degrade.degrade` with ``truncated``, sampled at HR
index ``s k + (s - 1) / 2``). The cache holds them, so a patch costs two FFTs of an LR slice and
none of HR, and it is cut from the whole slice's answer: ringing, wrap-around and the noise's
correlation are those of the whole slice, without an error at the patch's edge.

An :class:`Acquisition` holds ranges, a :class:`Scan` is one draw from them.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from scipy import fft

from poan_runtime.errors import PoanError
from poan_runtime.intensity import intensity_unit
from poan_train.degrade import GRID, Array, Degradation, degrade

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Range: TypeAlias = tuple[float, float]
Filter: TypeAlias = Literal["none", "hamming", "tukey", "fermi"]
FILTERS: tuple[Filter, ...] = ("hamming", "tukey", "fermi")
FOREGROUND = 0.05
"""A voxel above this share of the intensity unit counts as tissue."""


CHANCES: tuple[str, ...] = (
    *("bicubic", "filter", "elliptic", "corners", "partial"),
    *("phase", "interpolation", "noise", "rounding"),
)
LIMITS: Mapping[str, Range] = {
    **dict.fromkeys((*CHANCES, "taper_from", "taper_to"), (0.0, 1.0)),
    "fermi_radius": (0.1, 2.0),
    "fermi_width": (1e-3, 1.0),
    "partial_shares": (0.5, 1.0),
    "phase_share": (0.1, 1.0),
    "interpolation_factor": (1.0, 8.0),
    "snr": (0.1, 1e6),
    "levels": (2.0, 1e6),
}


def _check_field(name: str, value: Any) -> None:
    low, high = LIMITS[name]
    single = name in CHANCES
    values: tuple[Any, ...] = value if isinstance(value, tuple) else (value,)
    if single == isinstance(value, tuple) or not values:
        raise PoanError(f"LR model: {name}: expected {'a number' if single else 'two numbers'}")
    if not all(isinstance(v, int | float) and low <= v <= high for v in values):
        raise PoanError(f"LR model: {name}: need {low:g} to {high:g}, got {value}")
    if name != "partial_shares" and not single and (len(values) != 2 or values[0] > values[1]):
        raise PoanError(f"LR model: {name}: expected [lowest, highest], got {list(values)}")


@dataclass(frozen=True, kw_only=True)
class Acquisition:
    """How LR is acquired: for each part the chance that it happens, and the range it is drawn from.

    The defaults are the training mix of ``--lr-model scanner``. Frequencies are shares of the LR
    matrix's Nyquist frequency.
    """

    bicubic: float = 0.12
    """Chance of antialiased bicubic LR instead of a scan, so that such images do not get worse."""
    filter: float = 0.5
    """Chance of a filter, drawn evenly from Hamming, Tukey and Fermi."""
    taper_from: Range = (0.3, 0.9)
    """Tukey: where the cosine taper starts."""
    taper_to: Range = (0.0, 0.5)
    """Tukey: the response at the band's edge."""
    fermi_radius: Range = (0.75, 0.98)
    """Fermi: where the response is a half."""
    fermi_width: Range = (0.02, 0.12)
    """Fermi: the fall's width."""
    elliptic: float = 0.3
    """Chance that a filter follows the radius in k-space instead of each axis alone."""
    corners: float = 0.25
    """Chance that the corners of k-space, outside of the ellipse, are not acquired."""
    partial: float = 0.15
    """Chance of partial Fourier along one axis, zero-filled."""
    partial_shares: tuple[float, ...] = (6 / 8, 7 / 8)
    """Shares of the lines that are acquired."""
    phase: float = 0.25
    """Chance of fewer lines along one axis, zero-filled to the same matrix."""
    phase_share: Range = (0.6, 1.0)
    """Their share of the lines along the other axis."""
    interpolation: float = 0.08
    """Chance of the scanner's interpolation. Rare: the runtime crops a zero-filled spectrum before
    the network sees it, so this only covers where it is told not to or does not find the edge."""
    interpolation_factor: Range = (1.2, 2.0)
    """LR matrix over acquired matrix, both axes."""
    noise: float = 0.8
    """Chance of Rician noise."""
    snr: Range = (12.0, 100.0)
    """Median tissue over the standard deviation of each channel of LR, drawn evenly in its
    logarithm."""
    rounding: float = 0.5
    """Chance that voxels are whole numbers."""
    levels: Range = (250.0, 4000.0)
    """Whole numbers up to the intensity unit, drawn evenly in its logarithm."""

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_field(field.name, getattr(self, field.name))


NEVER: dict[str, Any] = dict.fromkeys(CHANCES, 0.0)
NOTHING = Acquisition(**NEVER)
"""Truncation alone."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One acquisition, every part decided. The defaults are truncation alone."""

    bicubic: bool = False
    filter: Filter = "none"
    shape: Range = (0.0, 0.0)
    """Tukey: start of the taper and response at the edge. Fermi: radius and width."""
    elliptic: bool = False
    corners: bool = False
    """The corners of k-space are skipped."""
    partial: tuple[int, float] | None = None
    """Axis (0 or 1), share of the lines that are there. Which side lacks lines does not matter: the
    image of the other side is the complex conjugate."""
    band: Range = (1.0, 1.0)
    """Acquired share of the LR matrix along rows and columns."""
    snr: float | None = None
    levels: float | None = None


KINDS: Mapping[str, Scan] = {
    "bicubic": Scan(bicubic=True),
    "truncated": Scan(),
    "filtered": Scan(filter="tukey", shape=(0.5, 0.25)),
    "snr30": Scan(snr=30.0),
    "snr15": Scan(snr=15.0),
}
"""The five fixed kinds of LR that models are compared on. Their noise has the seed KIND_SEED."""
KIND_SEED = 2026


def draw(config: Acquisition, rng: np.random.Generator) -> Scan:
    """One scan from the ranges of ``config``."""
    if rng.random() < config.bicubic:
        return Scan(bicubic=True)
    name, shape = _draw_filter(config, rng)
    return Scan(
        filter=name,
        shape=shape,
        elliptic=bool(rng.random() < config.elliptic),
        corners=bool(rng.random() < config.corners),
        partial=_draw_partial(config, rng),
        band=_draw_band(config, rng),
        snr=_log_uniform(config.snr, rng) if rng.random() < config.noise else None,
        levels=_log_uniform(config.levels, rng) if rng.random() < config.rounding else None,
    )


def _draw_filter(config: Acquisition, rng: np.random.Generator) -> tuple[Filter, Range]:
    if rng.random() >= config.filter:
        return "none", (0.0, 0.0)
    name = FILTERS[int(rng.integers(len(FILTERS)))]
    if name == "tukey":
        return name, (rng.uniform(*config.taper_from), rng.uniform(*config.taper_to))
    if name == "fermi":
        return name, (rng.uniform(*config.fermi_radius), rng.uniform(*config.fermi_width))
    return name, (0.0, 0.0)


def _draw_partial(config: Acquisition, rng: np.random.Generator) -> tuple[int, float] | None:
    if rng.random() >= config.partial:
        return None
    return int(rng.integers(2)), float(rng.choice(config.partial_shares))


def _draw_band(config: Acquisition, rng: np.random.Generator) -> Range:
    band = [1.0, 1.0]
    if rng.random() < config.phase:
        band[int(rng.integers(2))] = rng.uniform(*config.phase_share)
    if rng.random() < config.interpolation:
        factor = rng.uniform(*config.interpolation_factor)
        band = [share / factor for share in band]
    return band[0], band[1]


def _log_uniform(limits: Range, rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(*np.log(limits))))


def response(scan: Scan, shape: tuple[int, int]) -> Array:
    """What each line of k-space is multiplied by: (h, w) float32, in the order of an FFT.

    Zero where nothing is acquired. Along an axis, u is the frequency over that of the last acquired
    line; the radius is the length of (u, v).
    """
    u, v = (np.fft.fftfreq(n) * 2 / share for n, share in zip(shape, scan.band, strict=True))
    u, v = np.abs(u)[:, None], np.abs(v)[None, :]
    radius = np.hypot(u, v)
    out = window(scan, radius) if scan.elliptic else window(scan, u) * window(scan, v)
    out = out * ((u <= 1 + EPS) & (v <= 1 + EPS))
    if scan.corners:
        out = out * (radius <= 1 + EPS)
    if scan.partial:
        out = out * _acquired_side(scan.partial, shape, scan.band)
    return np.asarray(out, np.float32)


EPS = 1e-9
"""Rounding of a frequency that lies on the band's edge."""


def window(scan: Scan, u: Array) -> Array:
    """The filter's response at ``u``, the frequency over the band's edge, from 0 upwards."""
    a, b = scan.shape
    if scan.filter == "hamming":
        return np.asarray(0.54 + 0.46 * np.cos(np.pi * np.minimum(u, 1)))
    if scan.filter == "tukey":
        along = np.clip((u - a) / max(1 - a, EPS), 0, 1)
        return np.asarray(b + (1 - b) * 0.5 * (1 + np.cos(np.pi * along)))
    if scan.filter == "fermi":
        with np.errstate(over="ignore"):  # far beyond a narrow one the response is 0
            return np.asarray(1 / (1 + np.exp((u - a) / b)))
    return np.ones_like(u)


def _acquired_side(partial: tuple[int, float], shape: tuple[int, int], band: Range) -> Array:
    """1 for the lines of partial Fourier: all of one side, and the other up to 2 share - 1."""
    axis, share = partial
    u = np.fft.fftfreq(shape[axis]) * 2 / band[axis]
    return np.expand_dims(u <= 2 * share - 1 + EPS, 1 - axis)


def acquire(band: Array, scan: Scan, tissue: float, rng: np.random.Generator) -> Array:
    """LR (..., h, w) float32 of ``band``, its truncated slices: what ``scan`` makes of them.

    ``tissue`` is the median of tissue that the SNR refers to, in the units of ``band``; the noise
    of each channel, behind the filter, has the standard deviation tissue / SNR. Rounding takes 1.0
    as the intensity unit. The magnitude is taken last but for rounding. A scan that is
    ``bicubic`` needs HR, which is not here: ValueError.
    """
    if scan.bicubic:
        raise ValueError("bicubic LR is made from HR")
    lr = band
    if scan.snr or scan != Scan(snr=scan.snr, levels=scan.levels):
        lr = _filtered(band, scan, tissue / scan.snr if scan.snr else 0.0, rng)
    lr = np.abs(lr)
    if scan.levels:
        lr = np.rint(lr * np.float32(scan.levels)) / np.float32(scan.levels)
    return np.asarray(lr, np.float32)


def _filtered(band: Array, scan: Scan, sigma: float, rng: np.random.Generator) -> Array:
    """Complex slices behind the filter, with noise of ``sigma`` in each channel."""
    h, w = band.shape[-2:]
    weights = response(scan, (h, w))
    spectrum = fft.fft2(np.asarray(band, np.float32))
    if sigma:
        noise = rng.standard_normal((*band.shape, 2), np.float32).view(np.complex64)[..., 0]
        # an inverse FFT of h w values of deviation d has the deviation d / sqrt(h w)
        loss = float(np.sqrt(np.mean(np.square(weights, dtype=np.float64))))
        spectrum += noise * np.float32(sigma * np.sqrt(h * w) / loss)
    spectrum *= weights
    return np.asarray(fft.ifft2(spectrum, overwrite_x=True))


def tissue_of(lr: Array) -> float:
    """Median of the voxels above 5 % of the intensity unit; ``lr`` is in that unit."""
    inside = lr[lr > FOREGROUND]
    return float(np.median(inside)) if inside.size else 1.0


def bicubic_patch(hr: Array, y: int, x: int, patch: int, scale: int) -> Array:
    """LR (patch, patch) at LR voxel (y, x) of bicubic LR of hr (H, W), from its surroundings.

    Bit for bit that of the whole slice but for the order of sums: the kernel reaches two LR voxels.
    """
    margin = 3
    starts = [max(0, at - margin) for at in (y, x)]
    stops = [min(n // scale, at + patch + margin) for n, at in zip(hr.shape, (y, x), strict=True)]
    rows, columns = (slice(scale * a, scale * b) for a, b in zip(starts, stops, strict=True))
    lr = degrade(hr[rows, columns], scale, "bicubic")
    top, left = y - starts[0], x - starts[1]
    return lr[top : top + patch, left : left + patch]


@dataclass(frozen=True, kw_only=True)
class LRModel:
    """How a training makes LR: the rule from HR slices, and the acquisition behind it if any."""

    method: Degradation
    acquisition: Acquisition | None = None

    def facts(self, scale: int) -> dict[str, Any]:
        """What a checkpoint says of it."""
        said = {"method": self.method, "scale": scale}
        if self.acquisition:
            said["acquisition"] = json.loads(json.dumps(asdict(self.acquisition)))
        return said

    @classmethod
    def of_facts(cls, said: Mapping[str, Any]) -> "LRModel":
        """That of a checkpoint, also of one written before acquisitions were."""
        values = said.get("acquisition")
        return cls(
            method=said.get("method", "bicubic"),
            acquisition=_acquisition(values, "checkpoint") if values else None,
        )


def lr_model(name: str) -> LRModel:
    """``scanner``, ``bicubic``, ``truncated``, ``kspace``, or a TOML file of Acquisition's fields.

    Fields that the file leaves out keep their defaults. Raises PoanError for a file that cannot be
    read, a field that does not exist or a value out of range.
    """
    if name == "scanner":
        return LRModel(method="scanner", acquisition=Acquisition())
    if name == "truncated":
        return LRModel(method="truncated", acquisition=NOTHING)
    if name in ("bicubic", "kspace"):
        return LRModel(method="bicubic" if name == "bicubic" else "kspace")
    if not name.endswith(".toml"):
        choices = ", ".join(GRID)
        raise PoanError(f"--lr-model {name}: expected {choices} or a .toml file")
    try:
        values = tomllib.loads(Path(name).read_text())
    except OSError as error:
        raise PoanError(f"{name}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PoanError(f"{name}: not TOML: {error}") from None
    return LRModel(method="scanner", acquisition=_acquisition(values, name))


def _acquisition(values: Mapping[str, Any], where: str) -> Acquisition:
    unknown = sorted(set(values) - set(LIMITS))
    if unknown:
        raise PoanError(f"{where}: no part {', '.join(unknown)}; there are {', '.join(LIMITS)}")
    made: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        return Acquisition(**made)
    except PoanError as error:
        raise PoanError(f"{where}: {error}") from None


def lr_of(hr: Array, scale: int, said: Mapping[str, Any], seed: int = 0) -> Array:
    """LR (..., h, w) of HR (..., H, W) as the model with the facts ``said`` was trained on.

    ``said`` is a checkpoint's ``degradation``. Each call draws one scan from ``seed``. The result
    has HR's units. For calibration tiles and gates.
    """
    model = LRModel.of_facts(said)
    if model.acquisition is None:
        return degrade(hr, scale, model.method)
    rng = np.random.default_rng(seed)
    scan = draw(model.acquisition, rng)
    if scan.bicubic:
        return degrade(hr, scale, "bicubic")
    band = degrade(hr, scale, "truncated")
    unit = np.float32(intensity_unit(band))
    return np.asarray(acquire(band / unit, scan, tissue_of(band / unit), rng) * unit)
