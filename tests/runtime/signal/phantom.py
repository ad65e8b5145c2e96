"""Made scans: structure whose power falls as in anatomy, in air, acquired with noise."""

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.float64]


def anatomy(shape: tuple[int, int, int], seed: int = 1) -> Images:
    """Slices (n, h, w) of about 100 in an ellipse, 0 in the air, detail at every frequency."""
    rng = np.random.default_rng(seed)
    _, h, w = shape
    fy, fx = np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)
    radius = np.maximum(np.hypot(fy, fx), 0.02)
    texture = np.fft.irfft2(np.fft.rfft2(rng.normal(size=shape)) / radius, s=(h, w))
    texture *= 25 / texture.std()
    y, x = np.linspace(-1, 1, h)[:, None], np.linspace(-1, 1, w)
    inside = (y / 0.75) ** 2 + (x / 0.7) ** 2 < 1
    return np.asarray(np.where(inside, np.maximum(100 + texture, 5), 0.0))


def acquire(
    images: Images,
    matrix: tuple[int, int],
    *,
    sigma: float = 0.0,
    seed: int = 2,
    keep: NDArray[np.float64] | None = None,
) -> Images:
    """Magnitude (n, *matrix) of images with complex noise, zero-filled by numpy's own FFT.

    ``keep`` multiplies the columns' spectrum, in order from -Nyquist, before the filling.
    """
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, sigma, images.shape) + 1j * rng.normal(0, sigma, images.shape)
    spectrum = np.fft.fftshift(np.fft.fft2(images + noise), axes=(1, 2))
    if keep is not None:
        spectrum = spectrum * keep
    pads = [(0, 0)]
    for n, m in zip(images.shape[1:], matrix, strict=True):
        first = m // 2 - n // 2
        pads.append((first, m - n - first))
    filled = np.fft.ifftshift(np.pad(spectrum, pads), axes=(1, 2))
    gain = matrix[0] * matrix[1] / (images.shape[1] * images.shape[2])
    return np.asarray(np.abs(np.fft.ifft2(filled)) * gain)
